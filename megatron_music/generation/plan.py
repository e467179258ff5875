"""The token sequence of a song before it is sung: its header, the openings of its sections, and what may follow.

Id for id the form of the training documents (``documents/lyrics_to_song.py``, ``reference.py``, ``unconditional.py``),
whose options an exported model folder tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_music.documents.document import interleave
from megatron_music.documents.lyrics_to_song import INSTRUCTION
from megatron_music.documents.unconditional import INSTRUCTIONS
from megatron_music.errors import InputError
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.request import Reference, SongRequest
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.text import TextTokenizer


@dataclass
class SegmentTokens:
    """One section as it stands in the song's token sequence.

    Attributes:
        opening: ids of `[start_of_segment]`, the section's text and `<SOA><codec>`.
        audio: sampled ids, vocal and accompaniment in turn, whole frames.
        closing: ids of `<EOA>` and `[end_of_segment]`.
    """

    opening: list[int]
    audio: list[int] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """All ids of the section."""
        return self.opening + self.audio + self.closing


@dataclass(frozen=True)
class Plan:
    """All that stage 1 needs of a request.

    Attributes:
        header: ids before the first section: instruction, tags, lyrics and reference.
        openings: ids of every section's opening, sung ones included.
        past: sections that have been sung.
        sections: numbers of those that are to be sung.
        closing: ids behind a section's audio.
        grammar: of the audio spans.
        silence: the vocals' id of an instrumental song.
    """

    header: list[int]
    openings: list[list[int]]
    past: list[SegmentTokens]
    sections: range
    closing: list[int]
    grammar: AudioGrammar
    seed: int
    silence: int | None = None

    def allowed(self, position: int, shortest: int) -> list[range]:
        """Id ranges that may stand at ``position`` of a section; it can't end before ``shortest`` ids."""
        allowed = self.grammar.allowed(position)
        if position < shortest:
            allowed = allowed[:1]
        if self.silence is not None and position % self.grammar.period == 0:
            allowed = [range(self.silence, self.silence + 1), *allowed[1:]]
        return allowed

    def most_tokens(self, most_new: int) -> int:
        """Tokens of the whole song where each section that is to be sung has ``most_new`` ids of audio."""
        past = sum(len(segment.ids) for segment in self.past)
        openings = sum(len(self.openings[section]) + len(self.closing) for section in self.sections)
        return len(self.header) + past + openings + len(self.sections) * most_new


@dataclass
class Stage1Song:
    """A sung song: its plan and the tokens of its sections, those of the past included."""

    plan: Plan
    segments: list[SegmentTokens]

    def codes_T(self, track: int) -> np.ndarray:
        """Codebook-0 codes, int16 (frames,), of the vocals (0) or the accompaniment (1), or of the mix (0)."""
        ids = np.array([id for segment in self.segments for id in segment.audio], dtype=np.int32)
        return self.plan.grammar.codec.codes(ids[track :: self.plan.grammar.period])


def plan_song(
    folder: ModelFolder,
    tokenizer: TextTokenizer,
    request: SongRequest,
    codec: str | None = None,
    silence: int | None = None,
) -> Plan:
    """The plan of a request.

    Args:
        silence: the codebook-0 code of silence, for instrumental songs.

    Raises:
        InputError: the model was not trained on songs of this form, or a text in it holds special tokens.
    """
    dual = request.tracks == "dual"
    grammar = AudioGrammar(folder.vocabulary, folder.vocabulary.codec(codec), 2 if dual else 1)
    options = _options(folder, request)
    check_text("tags", request.tags, tokenizer)
    for number, text in enumerate(request.lyrics, start=1):
        check_text(f"lyrics: section {number}", text, tokenizer)
    silent = None
    if request.instrumental:
        if silence is None:
            raise ValueError("an instrumental song needs the code of silence")
        silent = grammar.codec.codebook_ids(0)[silence]
    if not request.lyrics:
        instruction = options.get("instruction") or INSTRUCTIONS[request.tracks]
        header = tokenizer.encode(f"{instruction}\n[Genre] {request.tags}")
        return Plan(
            header, [grammar.opening], [], request.sections, [grammar.end], grammar, request.seed, silence=silent
        )
    header = tokenizer.encode(header_text(request.tags, request.lyrics, options.get("instruction", INSTRUCTION)))
    if request.reference is not None:
        reference = _reference_ids(request.reference, tokenizer, grammar)
        header = reference + header if options.get("order") == "reference_first" else header + reference
    start = tokenizer.encode("[start_of_segment]")
    openings = [start + tokenizer.encode(text) + grammar.opening for text in request.lyrics]
    closing = [grammar.end, *tokenizer.encode("[end_of_segment]")]
    past = [
        SegmentTokens(opening, _ids("past", interleave(*segment.codes_2T), grammar).tolist(), closing)
        for opening, segment in zip(openings, request.past, strict=False)
    ]
    return Plan(header, openings, past, request.sections, closing, grammar, request.seed, silence=silent)


def header_text(tags: str, segments: Sequence[str], instruction: str = INSTRUCTION) -> str:
    """The text that stands before the first section."""
    return f"{instruction}\n[Genre] {tags}\n" + "\n".join(segments)


def check_text(where: str, text: str, tokenizer: TextTokenizer) -> None:
    """Raises InputError where a text holds a special token, which the tokenizer would cut out of it."""
    for token, id in tokenizer.vocabulary.specials.items():
        if token in text and id in tokenizer.encode(text):
            raise InputError(where, f"holds the special token {token}", "take it out")


def _options(folder: ModelFolder, request: SongRequest) -> dict[str, Any]:
    """The options of the training documents that a request is like; raises InputError where there were none."""
    if not request.lyrics:
        needed = ["unconditional"]
    elif request.reference is not None:
        needed = ["reference"]
    else:
        needed = ["lyrics_to_song", "reference"]
    found = [options for task in needed for options in folder.tasks.get(task, ())]
    if not request.lyrics:
        found = [options for options in found if options.get("tracks", "mix") == request.tracks]
    if folder.tasks and not found:
        what = {"unconditional": f"songs without lyrics ({request.tracks})", "reference": "references"}
        raise InputError(
            folder.path,
            f"was not trained on {what.get(needed[0], 'lyrics')} ({', '.join(sorted(folder.tasks))})",
            "choose another model or ask for another song",
        )
    return found[0] if found else {}


def _ids(what: str, codes_T: np.ndarray, grammar: AudioGrammar) -> np.ndarray:
    try:
        return grammar.codec.ids(codes_T[None])[0]
    except ValueError as error:
        raise InputError(what, str(error), "give codes of the models' codec") from None


def _reference_ids(reference: Reference, tokenizer: TextTokenizer, grammar: AudioGrammar) -> list[int]:
    tracks = [_ids("reference", codes_T, grammar) for codes_T in reference.tracks]
    audio = (interleave(*tracks) if len(tracks) == 2 else tracks[0]).tolist()
    opening, closing = tokenizer.encode("[start_of_reference]"), tokenizer.encode("[end_of_reference]")
    return [*opening, *grammar.opening, *audio, grammar.end, *closing]

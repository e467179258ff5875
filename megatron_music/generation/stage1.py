"""Stage 1: from tags and lyrics to the codebook-0 codes of vocals and accompaniment, segment by segment.

The network reads every token once. The prompt has the training documents' form: instruction, tags and all lyrics; then
for each segment `[start_of_segment]`, its text and `<SOA><codec>`; audio ids are sampled until `<EOA>`, and
`[end_of_segment]` follows.

Window rule: a song may be longer than the model has positions. Where the next token has no place, the context becomes
the header, the latest tokens of the earlier segments, the opening of the current segment, and its latest whole frames;
what is kept of the song fills half of the room beside header and opening, so that a rereading pays for as many new
tokens as it keeps. Where header and opening together take more than half of the positions the header is left out, as it
is of a training window that begins later in a song.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_music.documents.lyrics_to_song import INSTRUCTION
from megatron_music.errors import InputError
from megatron_music.generation.decoder import LlamaDecoder
from megatron_music.generation.models import STAGE1_TASKS, ModelFolder
from megatron_music.generation.sampling import SamplingSettings, choose, guide, penalise
from megatron_music.progress import track
from megatron_music.vocabulary.grammar import AudioGrammar

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TRACKS = 2
# Rows of the decoder: the song, and the song without its prompt (for guidance).
CONDITIONAL, UNCONDITIONAL = 0, 1


@dataclass
class SegmentTokens:
    """One segment as it stands in the song's token sequence.

    Attributes:
        opening: ids of `[start_of_segment]`, the segment's text and `<SOA><codec>`.
        audio: sampled ids, vocal and accompaniment in turn, whole frames.
        closing: ids of `<EOA>` and `[end_of_segment]`.
    """

    opening: list[int]
    audio: list[int] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """All ids of the segment."""
        return self.opening + self.audio + self.closing


@dataclass
class Stage1Song:
    """A sung song: header ids and the tokens of its segments."""

    header: list[int]
    segments: list[SegmentTokens]

    def codes_T(self, grammar: AudioGrammar, track_index: int) -> np.ndarray:
        """Codebook-0 codes, int16 (frames,), of the vocals (0) or the accompaniment (1)."""
        ids = np.array([id for segment in self.segments for id in segment.audio], dtype=np.int32)
        return grammar.codec.codes(ids[track_index::TRACKS])


def keep_window(
    header: Sequence[int], past: Sequence[int], opening: Sequence[int], audio: Sequence[int], positions: int
) -> tuple[list[int], int]:
    """The context after the window rule, and how many of the latest ``audio`` ids stand at its end.

    At least a quarter of the positions stays free for what comes.
    """
    kept_opening = list(opening[-(positions // 2) :])
    kept_header = list(header) if len(header) + len(kept_opening) <= positions // 2 else []
    keep = (positions - len(kept_header) - len(kept_opening)) // 2
    start = len(audio) - min(len(audio), keep)
    start += start % TRACKS  # begin with the vocals of a frame
    kept_past = 0 if start else min(len(past), keep - len(audio))
    context = kept_header + list(past[len(past) - kept_past :]) + kept_opening + list(audio[start:])
    return context, len(audio) - start


class Singer:
    """Samples one song; the decoder's caches live as long as it does."""

    def __init__(
        self,
        folder: ModelFolder,
        network: "LlamaForCausalLM",
        settings: SamplingSettings,
        seed: int,
        codec: str | None = None,
    ):
        if folder.positions < 32:
            raise InputError(folder.path, f"{folder.positions} positions hold no song", "choose another model")
        self.settings, self.positions = settings, folder.positions
        self.grammar = AudioGrammar(folder.vocabulary, folder.vocabulary.codec(codec), TRACKS)
        self.tokenizer = folder.tokenizer()
        self.guided = settings.guidance_first != 1 or settings.guidance_rest != 1
        self.decoder = LlamaDecoder(network, 2 if self.guided else 1, folder.positions)
        self.generator = torch.Generator().manual_seed(seed)
        self.seen = torch.zeros(folder.vocabulary.padded_size, dtype=torch.bool, device=self.decoder.device)
        options = next((folder.tasks[task] for task in STAGE1_TASKS if task in folder.tasks), {})
        self.instruction = options.get("instruction", INSTRUCTION)
        self.header: list[int] = []
        self.past: list[int] = []
        self.unread: list[int] = []

    def sing(self, tags: str, segments: Sequence[str], most: int | None = None) -> Stage1Song:
        """Sings ``segments``, texts as ``read_lyrics`` gives them, in order; at most the first ``most`` of them."""
        self.header = self.tokenizer.encode(header_text(tags, segments, self.instruction))
        self.unread = list(self.header)
        song = Stage1Song(self.header, [])
        for index, text in enumerate(track(segments[:most], "stage 1: segments")):
            scale = self.settings.guidance_first if index == 0 else self.settings.guidance_rest
            segment = self._sing_segment(text, scale)
            song.segments.append(segment)
            self.past += segment.ids
        return song

    def _sing_segment(self, text: str, scale: float) -> SegmentTokens:
        opening = self.tokenizer.encode("[start_of_segment]") + self.tokenizer.encode(text) + self.grammar.opening
        segment = SegmentTokens(opening)
        output = self._open(segment, guided=scale != 1)
        limit = self.settings.max_new_tokens // TRACKS * TRACKS
        while len(segment.audio) < limit:
            allowed = self.grammar.allowed(len(segment.audio))
            if len(segment.audio) < self.settings.min_new_tokens:
                allowed = allowed[:1]
            logits = self.decoder.score(output)
            scores = guide(logits[CONDITIONAL], logits[UNCONDITIONAL] if scale != 1 else None, scale)
            scores = penalise(scores, self.seen, self.settings.repetition_penalty)
            id = choose(scores, allowed, self.settings, self.generator)
            if id == self.grammar.end:
                break
            segment.audio.append(id)
            self.seen[id] = True
            if len(segment.audio) < limit:
                output = self._read_audio(segment, guided=scale != 1)
        segment.closing = [self.grammar.end] + self.tokenizer.encode("[end_of_segment]")
        # The last id sampled at the limit was never read; <EOA> is sampled and never read.
        self.unread = segment.audio[-1:] * (len(segment.audio) == limit) + segment.closing
        return segment

    def _open(self, segment: SegmentTokens, guided: bool) -> torch.Tensor:
        """Reads what has come since the last sampled id; the unconditional row starts anew at the codec's marker."""
        if self.decoder.lengths[CONDITIONAL] + len(self.unread) + len(segment.opening) > self.positions:
            return self._reread(segment, guided)
        ids = self.unread + segment.opening
        self.seen[ids] = True
        output = self.decoder.read([ids], CONDITIONAL)
        return self._with_unconditional(output, segment, guided)

    def _read_audio(self, segment: SegmentTokens, guided: bool) -> torch.Tensor:
        if self.decoder.lengths[CONDITIONAL] == self.positions:
            return self._reread(segment, guided)
        return self.decoder.read([segment.audio[-1:]] * (2 if guided else 1))

    def _reread(self, segment: SegmentTokens, guided: bool) -> torch.Tensor:
        """Applies the window rule to all that has been sung, the id just sampled included."""
        context, kept = keep_window(self.header, self.past, segment.opening, segment.audio, self.positions)
        self.seen.zero_()
        self.seen[context] = True
        self.decoder.forget(CONDITIONAL)
        output = self.decoder.read([context], CONDITIONAL)
        return self._with_unconditional(output, segment, guided, segment.audio[len(segment.audio) - kept :])

    def _with_unconditional(
        self, output: torch.Tensor, segment: SegmentTokens, guided: bool, audio: Sequence[int] = ()
    ) -> torch.Tensor:
        if not guided:
            return output
        self.decoder.forget(UNCONDITIONAL)
        return torch.cat([output, self.decoder.read([[*segment.opening[-1:], *audio]], UNCONDITIONAL)])


def header_text(tags: str, segments: Sequence[str], instruction: str = INSTRUCTION) -> str:
    """The text that stands before the first segment."""
    return f"{instruction}\n[Genre] {tags}\n" + "\n".join(segments)

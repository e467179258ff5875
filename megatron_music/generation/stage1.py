"""Stage 1: from a song's prompt to the codebook-0 codes of vocals and accompaniment, section by section.

The network reads every token of the song once. The prompt has the training documents' form: instruction, tags and all
lyrics, and a reference where there is one; then for each section `[start_of_segment]`, its text and `<SOA><codec>`;
audio ids are sampled until `<EOA>`, and `[end_of_segment]` follows. A song without lyrics is instruction, tags and one
span.

Several songs are the rows of one batch, each with its own caches, its own random numbers (one generator for each
section, seeded by the song's seed and the section's number) and its own place in its song. A song is therefore the one
that would be sung alone, as far as the device multiplies a row in a batch as it does alone: the last bits may differ,
and with them, seldom, a draw.

Window rule: a song may be longer than the model has positions. Where the next token has no place, the context becomes
header and reference, the latest tokens of the earlier sections, the opening of the current one, and its latest whole
frames; what is kept of the song fills half of the room beside header and opening, so that a rereading pays for as many
new tokens as it keeps.

The penalty on repeated ids needs the normaliser of log-probabilities, and that alone needs the logits of the whole
vocabulary: in a small network most of the work, since its 84k rows of weights are read for one token. So ids are chosen
with the latest normaliser that is known, as guesses, and the normalisers of a few tokens are computed in one product.
An id that the right normaliser would not have chosen is replaced, and what was sung behind it is taken back.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_music import progress
from megatron_music.errors import InputError
from megatron_music.generation.decoder import LlamaDecoder
from megatron_music.generation.plan import Plan, SegmentTokens, Stage1Song
from megatron_music.generation.request import Watch
from megatron_music.generation.sampling import (
    SamplingSettings,
    choose,
    guide,
    normalisers,
    penalise,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# Outputs of the network against the whole vocabulary in one product; more would cost nearly as much each.
ROWS_SETTLED = 8


def sing(
    network: "LlamaForCausalLM",
    positions: int,
    plans: Sequence[Plan],
    settings: SamplingSettings,
    watch: Watch | None = None,
) -> list[Stage1Song]:
    """Sings the planned songs side by side.

    Args:
        positions: tokens of the longest context that the network may be shown.

    Raises:
        InputError: a section's opening, with header and reference, leaves no room to sing (see ``check_room``).
        Stopped: ``watch.stop`` was set.
    """
    return _DecoderChoir(network, positions, plans, settings, watch or Watch()).sing()


def check_room(plan: Plan, positions: int) -> None:
    """Raises InputError where header, reference and a section's opening take more than 3/4 of the positions."""
    for number, opening in enumerate(plan.openings, start=1):
        if 4 * (len(plan.header) + len(opening)) > 3 * positions:
            parts = (
                f"tags, lyrics and reference take {len(plan.header)} tokens, section {number} another {len(opening)}"
            )
            raise InputError(
                "song",
                f"is too long: {parts}, of which the model's {positions} positions hold {3 * positions // 4}",
                "shorten the lyrics or the reference",
            )


def keep_window(
    header: Sequence[int],
    past: Sequence[int],
    opening: Sequence[int],
    audio: Sequence[int],
    positions: int,
    tracks: int = 2,
) -> tuple[list[int], int]:
    """The context after the window rule, and how many of the latest ``audio`` ids stand at its end.

    Header and opening together leave a quarter of the positions free (``check_room``), half of which stays free here.
    """
    keep = (positions - len(header) - len(opening)) // 2
    start = len(audio) - min(len(audio), keep)
    start += -start % tracks  # begin with the vocals of a frame
    kept_past = 0 if start else min(len(past), keep - len(audio))
    context = list(header) + list(past[len(past) - kept_past :]) + list(opening) + list(audio[start:])
    return context, len(audio) - start


@dataclass
class Guess:
    """An id chosen with normalisers that may be those of an earlier token.

    Attributes:
        first_seen: the id did not stand in the context before.
        allowed: id ranges that it was chosen among.
        output: of the network, (rows, hidden), one row or two; None where only one id was allowed.
        logits: (rows, allowed ids), on the CPU.
        seen: bool (allowed ids,), those in the context.
        drawn: the random number that the choice was made with.
    """

    id: int
    first_seen: bool = False
    allowed: Sequence[range] = ()
    output: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    seen: torch.Tensor | None = None
    drawn: float = 0.0


class Voice:
    """One song on its way.

    Attributes:
        row: the song itself; the next one is its unconditional twin, where there is guidance.
        unread: ids that stand in the song and that the network has not read.
        past: ids of all sections before the current one.
        output: the network's output (rows, hidden) at the last id read, of the song and, with guidance, of its twin.
        seen: bool (vocabulary,) on the CPU: ids in the context.
        guesses: the latest ids, which are not known to be right.
        normaliser: (rows,) of the latest output for which it is known; None at the beginning of a section.
    """

    def __init__(self, number: int, plan: Plan, row: int, seen: torch.Tensor):
        self.number, self.plan, self.row, self.seen = number, plan, row, seen
        self.past = [id for segment in plan.past for id in segment.ids]
        self.unread = plan.header + self.past
        self.sung = list(plan.past)
        self.waiting = list(plan.sections)
        self.section = -1
        self.segment: SegmentTokens | None = None
        self.output = torch.empty(0)
        self.guesses: list[Guess] = []
        self.normaliser: torch.Tensor | None = None

    @property
    def ended(self) -> bool:
        return self.segment is None and not self.waiting

    def begin(self) -> None:
        """Opens the next section."""
        self.section = self.waiting.pop(0)
        self.segment = SegmentTokens(list(self.plan.openings[self.section]))
        # One generator a section: a song that goes on after some section draws what it would have drawn there.
        self.generator = np.random.default_rng([self.plan.seed % 2**64, self.section])
        self.drawn: list[float] = []
        self.normaliser = None

    def drawn_at(self, position: int) -> float:
        """The random number of a position of the section, the same when an id there is chosen again."""
        while len(self.drawn) <= position:
            self.drawn.append(float(self.generator.random()))
        return self.drawn[position]

    def add(self, guess: Guess) -> None:
        """Appends a guess, which stands in the song at once unless it ends the section."""
        self.guesses.append(guess)
        if guess.id != self.plan.grammar.end:
            guess.first_seen = not bool(self.seen[guess.id])
            self.seen[guess.id] = True
            self.segment.audio.append(guess.id)

    def remove(self) -> None:
        """Takes the latest guess away."""
        guess = self.guesses.pop()
        if guess.id != self.plan.grammar.end:
            self.segment.audio.pop()
            self.seen[guess.id] = not guess.first_seen

    def end(self, read: int) -> None:
        """Closes the section, ``read`` of whose audio ids the network has read."""
        segment = self.segment
        segment.closing = list(self.plan.closing)
        self.unread = segment.audio[read:] + segment.closing
        self.past += segment.ids
        self.sung.append(segment)
        self.segment = None


class Choir(ABC):
    """Songs side by side, whatever runs the network: what they are shown, and what is made of its scores.

    Args:
        positions: tokens of the longest context that the network may be shown.
    """

    def __init__(self, positions: int, plans: Sequence[Plan], settings: SamplingSettings, watch: Watch):
        for plan in plans:
            check_room(plan, positions)
        self.positions, self.settings, self.watch = positions, settings, watch
        # Guidance may be off in some sections: their twins then rest.
        self.rows_each = 2 if settings.guidance_first != 1 or settings.guidance_rest != 1 else 1
        seen = torch.zeros(len(plans), plans[0].grammar.vocabulary.padded_size, dtype=torch.bool)
        self.voices = [Voice(number, plan, self.rows_each * number, seen[number]) for number, plan in enumerate(plans)]

    def sing(self) -> list[Stage1Song]:
        """All songs to their ends; raises Stopped where ``watch.stop`` was set."""
        total = sum(len(voice.waiting) for voice in self.voices)
        with progress.watch(
            lambda: total - sum(len(voice.waiting) for voice in self.voices), "stage 1: sections", total
        ):
            while active := [voice for voice in self.voices if not voice.ended]:
                self.watch.check()
                for voice in active:
                    if voice.segment is None:
                        self._open(voice)
                self._advance(active)
        return [Stage1Song(voice.plan, voice.sung) for voice in self.voices]

    @abstractmethod
    def _advance(self, voices: Sequence[Voice]) -> None:
        """One id more for each voice; some of them may stay guesses."""

    @abstractmethod
    def _length(self, voice: Voice) -> int:
        """Tokens in the voice's cache."""

    @abstractmethod
    def _show(self, voice: Voice, ids: list[int], audio: Sequence[int], anew: bool) -> None:
        """Lets the song read ``ids``, behind what it holds or ``anew``; its twin the codec's marker and ``audio``."""

    def _open(self, voice: Voice) -> None:
        """Reads what has come since the last sampled id; the twin starts anew at the codec's marker."""
        voice.begin()
        ids = voice.unread + voice.segment.opening
        if self._length(voice) + len(ids) > self.positions:
            self._reread(voice)
            return
        voice.seen[ids] = True
        self._show(voice, ids, [], anew=False)

    def _reread(self, voice: Voice) -> None:
        """Applies the window rule to all that has been sung, the id just sampled included."""
        segment, plan = voice.segment, voice.plan
        context, kept = keep_window(
            plan.header, voice.past, segment.opening, segment.audio, self.positions, plan.grammar.period
        )
        voice.seen.zero_()
        voice.seen[context] = True
        self._show(voice, context, segment.audio[len(segment.audio) - kept :], anew=True)

    def _scale(self, voice: Voice) -> float:
        return self.settings.guidance_first if voice.section == 0 else self.settings.guidance_rest

    def _rows(self, voice: Voice) -> list[int]:
        return [voice.row] if self._scale(voice) == 1 else [voice.row, voice.row + 1]

    def _chosen(self, voice: Voice, guess: Guess, normaliser: torch.Tensor | None) -> int:
        logs = guess.logits if normaliser is None else guess.logits - normaliser[:, None]
        scores = guide(logs[0], logs[1] if len(logs) == 2 else None, self._scale(voice))
        scores = penalise(scores, guess.seen, self.settings.repetition_penalty)
        return choose(scores, guess.allowed, self.settings, guess.drawn)

    def _limit(self, voice: Voice) -> int:
        period = voice.plan.grammar.period
        return self.settings.max_new_tokens // period * period

    def _tell(self, voice: Voice) -> None:
        """Tells of the ids that are right now, and ends the section if they do."""
        segment, end = voice.segment, voice.plan.grammar.end
        ended = voice.guesses[-1].id == end
        first = len(segment.audio) - len(voice.guesses) + ended
        voice.guesses.clear()
        for count in range(first + 1, len(segment.audio) + 1):
            self.watch.check()
            self.watch.on_token(voice.number, voice.section, count)
        if ended or len(segment.audio) == self._limit(voice):
            # The last id sampled at the limit was never read; <EOA> is sampled and never read.
            voice.end(len(segment.audio) - (not ended))
            self.watch.on_segment(voice.number, voice.section, voice.plan.sections.stop)


class _DecoderChoir(Choir):
    def __init__(
        self,
        network: "LlamaForCausalLM",
        positions: int,
        plans: Sequence[Plan],
        settings: SamplingSettings,
        watch: Watch,
    ):
        super().__init__(positions, plans, settings, watch)
        self.positions = min(positions, max(plan.most_tokens(settings.max_new_tokens) for plan in plans))
        self.decoder = LlamaDecoder(network, self.rows_each * len(plans), self.positions)
        # With many songs the product is worth its reading of the weights at every token.
        self.most_guesses = max(1, ROWS_SETTLED // len(self.decoder.lengths))

    def _advance(self, voices: Sequence[Voice]) -> None:
        self._guess(voices)
        if any(self._due(voice) for voice in voices):
            self._settle(voices)
        self._read([voice for voice in voices if voice.segment is not None])

    def _length(self, voice: Voice) -> int:
        return self.decoder.lengths[voice.row]

    def _show(self, voice: Voice, ids: list[int], audio: Sequence[int], anew: bool) -> None:
        if anew:
            self.decoder.forget(voice.row)
        voice.output = self.decoder.read([ids], [voice.row])
        if self._scale(voice) != 1:
            twin = voice.row + 1
            self.decoder.forget(twin)
            ids = [*voice.segment.opening[-1:], *audio]
            voice.output = torch.cat([voice.output, self.decoder.read([ids], [twin])])

    def _guess(self, voices: Sequence[Voice]) -> None:
        """One id more for each voice, or the end of its section, by the normaliser of an earlier token."""
        outputs = torch.cat([voice.output for voice in voices])
        scored: dict[range, torch.Tensor] = {}
        row = 0
        for voice in voices:
            position, rows = len(voice.segment.audio), slice(row, row + len(voice.output))
            row = rows.stop
            allowed = voice.plan.allowed(position, self.settings.min_new_tokens)
            if sum(map(len, allowed)) == 1:
                voice.add(Guess(allowed[0].start))
                continue
            for ids in allowed:
                if ids not in scored:
                    scored[ids] = self.decoder.score(outputs, ids).cpu()
            logits = torch.cat([scored[ids][rows] for ids in allowed], dim=1)
            seen = torch.cat([voice.seen[ids.start : ids.stop] for ids in allowed])
            guess = Guess(-1, False, allowed, voice.output, logits, seen, voice.drawn_at(position))
            guess.id = self._chosen(voice, guess, voice.normaliser)
            voice.add(guess)

    def _due(self, voice: Voice) -> bool:
        """Whether the voice can't go on as long as its guesses may be wrong."""
        ends = voice.guesses[-1].id == voice.plan.grammar.end or len(voice.segment.audio) == self._limit(voice)
        full = self.decoder.lengths[voice.row] == self.positions
        return ends or full or voice.normaliser is None or len(voice.guesses) == self.most_guesses

    def _settle(self, voices: Sequence[Voice]) -> None:
        """Makes ids of all guesses: computes their normalisers, and replaces the first wrong one of each voice."""
        outputs = [guess.output for voice in voices for guess in voice.guesses if guess.output is not None]
        found = iter(())
        if outputs and self.settings.repetition_penalty != 1:
            of_rows = normalisers(self.decoder.score(torch.cat(outputs))).cpu()
            found = iter(of_rows.split([len(output) for output in outputs]))
        for voice in voices:
            known = [None if guess.output is None else next(found, None) for guess in voice.guesses]
            self._correct(voice, known)
            self._tell(voice)

    def _correct(self, voice: Voice, known: Sequence[torch.Tensor | None]) -> None:
        """Goes back to the first id that its normaliser, one for each guess, would not have chosen."""
        for place, (guess, normaliser) in enumerate(zip(voice.guesses, known, strict=True)):
            if normaliser is None:
                continue
            voice.normaliser = normaliser
            id = self._chosen(voice, guess, normaliser)
            if id != guess.id:
                # All guesses but the last have been read.
                for row in self._rows(voice):
                    self.decoder.take_back(row, len(voice.guesses) - 1 - place)
                while len(voice.guesses) > place:
                    voice.remove()
                guess.id = id
                voice.add(guess)
                return

    def _read(self, voices: Sequence[Voice]) -> None:
        """The id just sampled, in all rows at once."""
        full = [voice for voice in voices if self.decoder.lengths[voice.row] == self.positions]
        for voice in full:
            self._reread(voice)
        going = [voice for voice in voices if voice not in full]
        rows = [row for voice in going for row in self._rows(voice)]
        if rows:
            ids = [voice.segment.audio[-1:] for voice in going for _ in self._rows(voice)]
            outputs = self.decoder.read(ids, rows).split([len(self._rows(voice)) for voice in going])
            for voice, output in zip(going, outputs, strict=True):
                voice.output = output

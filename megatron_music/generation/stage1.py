"""Stage 1: from a song's prompt to the codebook-0 codes of vocals and accompaniment, section by section.

The network reads every token once. The prompt has the training documents' form: instruction, tags and all lyrics, and a
reference where there is one; then for each section `[start_of_segment]`, its text and `<SOA><codec>`; audio ids are
sampled until `<EOA>`, and `[end_of_segment]` follows. A song without lyrics is instruction, tags and one span.

Several songs are the rows of one batch, each with its own caches, its own random numbers (one generator for each
section, seeded by the song's seed and the section's number) and its own place in its song. A song is therefore the one
that would be sung alone, as far as the device multiplies a row in a batch as it does alone: the last bits may differ,
and with them, seldom, a draw.

Window rule: a song may be longer than the model has positions. Where the next token has no place, the context becomes
header and reference, the latest tokens of the earlier sections, the opening of the current one, and its latest whole
frames; what is kept of the song fills half of the room beside header and opening, so that a rereading pays for as many
new tokens as it keeps.
"""

from collections.abc import Sequence
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
    log_probabilities,
    normalisers,
    penalise,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


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
    for plan in plans:
        check_room(plan, positions)
    return _Choir(network, positions, plans, settings, watch or Watch()).sing()


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


class _Voice:
    """One song on its way.

    Attributes:
        row: of the decoder, the song itself; the next one is its unconditional twin, where there is guidance.
        unread: ids that stand in the song and that the network has not read.
        past: ids of all sections before the current one.
        output: the network's output at the last id read, for the song and, with guidance, for its twin.
    """

    def __init__(self, number: int, plan: Plan, row: int, seen: torch.Tensor):
        self.number, self.plan, self.row, self.seen = number, plan, row, seen
        self.past = [id for segment in plan.past for id in segment.ids]
        self.unread = plan.header + self.past
        self.sung = list(plan.past)
        self.waiting = list(plan.sections)
        self.section = -1
        self.segment: SegmentTokens | None = None
        self.output: list[torch.Tensor] = []

    @property
    def ended(self) -> bool:
        return self.segment is None and not self.waiting

    def begin(self) -> None:
        """Opens the next section."""
        self.section = self.waiting.pop(0)
        self.segment = SegmentTokens(list(self.plan.openings[self.section]))
        # One generator a section: a song that goes on after some section draws what it would have drawn there.
        words = np.random.SeedSequence([self.plan.seed % 2**64, self.section]).generate_state(2)
        self.generator = torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))

    def end(self, read: int) -> None:
        """Closes the section, ``read`` of whose audio ids the network has read."""
        segment = self.segment
        segment.closing = list(self.plan.closing)
        self.unread = segment.audio[read:] + segment.closing
        self.past += segment.ids
        self.sung.append(segment)
        self.segment = None


class _Choir:
    def __init__(
        self,
        network: "LlamaForCausalLM",
        positions: int,
        plans: Sequence[Plan],
        settings: SamplingSettings,
        watch: Watch,
    ):
        self.settings, self.watch = settings, watch
        # Guidance may be off in some sections: their twins then rest.
        self.guided = settings.guidance_first != 1 or settings.guidance_rest != 1
        rows = 2 if self.guided else 1
        self.positions = min(positions, max(plan.most_tokens(settings.max_new_tokens) for plan in plans))
        self.decoder = LlamaDecoder(network, rows * len(plans), self.positions)
        vocabulary_rows = network.lm_head.weight.shape[0]
        seen = torch.zeros(len(plans), vocabulary_rows, dtype=torch.bool, device=self.decoder.device)
        self.voices = [_Voice(number, plan, rows * number, seen[number]) for number, plan in enumerate(plans)]

    def sing(self) -> list[Stage1Song]:
        total = sum(len(voice.waiting) for voice in self.voices)
        with progress.watch(
            lambda: total - sum(len(voice.waiting) for voice in self.voices), "stage 1: sections", total
        ):
            while active := [voice for voice in self.voices if not voice.ended]:
                self.watch.check()
                for voice in active:
                    if voice.segment is None:
                        self._open(voice)
                self._sample(active)
                self._read([voice for voice in active if voice.segment is not None])
        return [Stage1Song(voice.plan, voice.sung) for voice in self.voices]

    def _scale(self, voice: _Voice) -> float:
        return self.settings.guidance_first if voice.section == 0 else self.settings.guidance_rest

    def _rows(self, voice: _Voice) -> list[int]:
        return [voice.row] if self._scale(voice) == 1 else [voice.row, voice.row + 1]

    def _open(self, voice: _Voice) -> None:
        """Reads what has come since the last sampled id; the twin starts anew at the codec's marker."""
        voice.begin()
        ids = voice.unread + voice.segment.opening
        if self.decoder.lengths[voice.row] + len(ids) > self.positions:
            self._reread(voice)
            return
        voice.seen[ids] = True
        self._set_output(voice, self.decoder.read([ids], [voice.row]), [])

    def _reread(self, voice: _Voice) -> None:
        """Applies the window rule to all that has been sung, the id just sampled included."""
        segment, plan = voice.segment, voice.plan
        context, kept = keep_window(
            plan.header, voice.past, segment.opening, segment.audio, self.positions, plan.grammar.period
        )
        voice.seen.zero_()
        voice.seen[context] = True
        self.decoder.forget(voice.row)
        output = self.decoder.read([context], [voice.row])
        self._set_output(voice, output, segment.audio[len(segment.audio) - kept :])

    def _set_output(self, voice: _Voice, output: torch.Tensor, audio: Sequence[int]) -> None:
        voice.output = [output[0]]
        if self._scale(voice) != 1:
            twin = voice.row + 1
            self.decoder.forget(twin)
            voice.output.append(self.decoder.read([[*voice.segment.opening[-1:], *audio]], [twin])[0])

    def _sample(self, voices: Sequence[_Voice]) -> None:
        """One id more for each voice, or the end of its section."""
        logits_RV = self.decoder.score(torch.stack([output for voice in voices for output in voice.output]))
        rows = iter(zip(logits_RV, normalisers(logits_RV), strict=True))
        for voice in voices:
            id = self._choose(voice, [next(rows) for _ in voice.output])
            plan, segment = voice.plan, voice.segment
            limit = self.settings.max_new_tokens // plan.grammar.period * plan.grammar.period
            if id != plan.grammar.end:
                segment.audio.append(id)
                voice.seen[id] = True
                self.watch.on_token(voice.number, voice.section, len(segment.audio))
            if id == plan.grammar.end or len(segment.audio) == limit:
                # The last id sampled at the limit was never read; <EOA> is sampled and never read.
                voice.end(len(segment.audio) - (id != plan.grammar.end))
                self.watch.on_segment(voice.number, voice.section, plan.sections.stop)

    def _choose(self, voice: _Voice, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """The next id by the logits and normalisers of the song and, with guidance, of its twin."""
        allowed = voice.plan.allowed(len(voice.segment.audio), self.settings.min_new_tokens)
        if sum(map(len, allowed)) == 1:
            return allowed[0].start
        conditional, *twin = [log_probabilities(*row, allowed) for row in rows]
        scores = guide(conditional, twin[0] if twin else None, self._scale(voice))
        seen = torch.cat([voice.seen[ids.start : ids.stop] for ids in allowed])
        scores = penalise(scores, seen, self.settings.repetition_penalty)
        return choose(scores, allowed, self.settings, voice.generator)

    def _read(self, voices: Sequence[_Voice]) -> None:
        """The id just sampled, in all rows at once."""
        full = [voice for voice in voices if self.decoder.lengths[voice.row] == self.positions]
        for voice in full:
            self._reread(voice)
        going = [voice for voice in voices if voice not in full]
        rows = [row for voice in going for row in self._rows(voice)]
        if rows:
            ids = [voice.segment.audio[-1:] for voice in going for _ in self._rows(voice)]
            outputs = iter(self.decoder.read(ids, rows))
            for voice in going:
                voice.output = [next(outputs) for _ in self._rows(voice)]

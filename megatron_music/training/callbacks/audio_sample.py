"""What the model in training sings, for TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_music.audio.codec import Codec
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.inspect import DocumentReader
from megatron_music.corpus.listen import load_codec_of_corpus, without_clipping
from megatron_music.engine.sampling import grammar_of, reader_of_engine, sample_spans, span_prompts
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import AudioSample
from megatron_music.training.loop import Callback, StepReport
from megatron_music.training.metrics_log import MetricsLog

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer


def codec_of_samples(corpus: Path, options: AudioSample) -> Codec:
    """The codec that samples are decoded by; raises InputError where it can't be had."""
    try:
        return load_codec_of_corpus(DocumentReader(corpus / options.source), options.weights)
    except InputError as error:
        raise InputError("watch.audio_sample", f"its codec can't be had ({error})",
                         "name its folder in watch.audio_sample.weights, or leave this out") from None  # fmt: skip


class AudioSamples(Callback):
    """Continues the opening of a document, the same one each time, and decodes its tracks together.

    Ids that the grammar forbids are drawn again, as ``InvalidTokenShare`` counts them.
    """

    def __init__(self, log: MetricsLog, options: AudioSample):
        self.log, self.options = log, options

    def at_begin(self, trainer: "Trainer", first_step: int) -> None:
        """Reads the opening and the codec."""
        source = IndexedSource(trainer.recipe.corpus / self.options.source)
        self._grammar = grammar_of(source, trainer.vocabulary)
        self._prompts = span_prompts(source, self._grammar, most=1)
        self._codec = codec_of_samples(trainer.recipe.corpus, self.options)

    def after_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Sings where the step is due."""
        done = report.step.index + 1
        if done % self.options.every_steps:
            return
        reader = reader_of_engine(trainer.engine, 1, report.step.span.phase.context_tokens)
        frames = max(1, round(self.options.seconds * self._codec.frames_per_second))
        positions = self._grammar.period * frames
        found = sample_spans(reader, self._prompts, self._grammar, positions, trainer.recipe.seed)
        if torch.distributed.get_rank() == 0:
            spans = [self._grammar.tracks(span.ids) for span in found.spans]
            tracks = [self._codec.decode(np.concatenate([span[kind] for span in spans])[None]) for kind in spans[0]]
            sound = without_clipping({"song": np.sum(tracks, axis=0)})["song"]
            self.log.sound(done, "audio_sample", sound, self._codec.sample_rate)
            self.log.event(done, "audio_sample", seconds=len(sound) / self._codec.sample_rate)

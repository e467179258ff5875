"""What the callbacks that sample count and decode: by the documents' own grammar, of two tracks or of a mix."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.recipe.recipe import AudioSample, InvalidTokens
from megatron_music.training.callbacks import audio_sample
from megatron_music.training.callbacks.audio_sample import AudioSamples
from megatron_music.training.callbacks.invalid_tokens import InvalidTokenShare
from megatron_music.training.loop import StepReport
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary

SOA, EOA, MARKER, FIRST, CODES, PADDED = 65, 66, 67, 68, 32, 128
VOCABULARY = Vocabulary(
    "tiny",
    64,
    {"<EOD>": 64, "<SOA>": SOA, "<EOA>": EOA, "<tiny>": MARKER},
    {"tiny": CodecRange("tiny", "<tiny>", FIRST, 1, CODES)},
    100,
    PADDED,
    "tiny",
)
TRACKS = {"songs": [Kind.VOCAL, Kind.ACCOMPANIMENT], "mixes": [Kind.MIX]}


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A source ``songs`` of two tracks that take turns and a source ``mixes`` of one, the same ids in both."""
    ids = [5, SOA, MARKER, *range(FIRST, FIRST + 8), EOA]
    for name, kinds in TRACKS.items():
        of_ids = [Kind.TEXT, Kind.SPECIAL, Kind.SPECIAL, *(kinds * 8)[:8], Kind.SPECIAL]
        with IndexedWriter(tmp_path / name) as writer:
            writer.add(np.array(ids, np.int32), np.array(of_ids, np.uint8))
    return tmp_path


class Log:
    """Keeps what is written."""

    def __init__(self):
        self.values, self.sounds = [], []

    def write(self, step, values):
        self.values.append((step, values))

    def sound(self, step, name, samples, sample_rate):
        self.sounds.append(samples)

    def say(self, text):
        pass

    def event(self, step, name, **values):
        pass


def run(callback, corpus, end: float, steps: int = 2) -> Log:
    """Some steps of a model that draws the end of audio with a probability, and else any code."""
    logits_V = torch.full((PADDED,), -torch.inf)
    logits_V[FIRST : FIRST + CODES] = np.log((1 - end) / CODES)
    logits_V[EOA] = np.log(end) if end else -torch.inf
    engine = SimpleNamespace(logits=lambda ids_BT: logits_V.expand(*ids_BT.shape, -1))
    recipe = SimpleNamespace(corpus=corpus, seed=0)
    trainer = SimpleNamespace(recipe=recipe, vocabulary=VOCABULARY, engine=engine, last_step=steps)
    callback.at_begin(trainer, 0)
    span = SimpleNamespace(phase=SimpleNamespace(context_tokens=256))
    for index in range(steps):
        callback.after_step(trainer, StepReport(SimpleNamespace(index=index, span=span), None))
    return callback.log


# A span has 2 frames on average. Of two tracks 4 codes and an end are drawn, and an end is invalid for the first code
# and for every second one: 3 of them. Of one track 2 codes and an end are drawn, and an end is invalid for the first.
@pytest.mark.parametrize(("source", "share"), [("songs", 3 * 0.5 / 5), ("mixes", 0.5 / 3)])
def test_invalid_tokens_are_counted_by_what_the_documents_are(corpus, source, share):
    log = run(InvalidTokenShare(Log(), InvalidTokens(source=source, positions=8000, every_steps=2)), corpus, end=0.5)
    [(step, values)] = log.values
    assert step == 2 and values["invalid_token_positions"] == 8000
    assert values["invalid_token_share"] == pytest.approx(share, abs=0.02)


class Pulses:
    """A codec of a sample a frame: as loud as the code is high."""

    name, sample_rate, frames_per_second, codebooks, codebook_size = "tiny", 10, 10.0, 1, CODES

    def decode(self, codes_KT):
        return codes_KT[0].astype(np.float32) / 1000


@pytest.mark.parametrize("source", ["songs", "mixes"])
def test_what_is_sung_holds_all_tracks_for_as_long_as_asked(corpus, source, monkeypatch):
    monkeypatch.setattr(audio_sample, "codec_of_samples", lambda *_: Pulses())
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    log = run(AudioSamples(Log(), AudioSample(source=source, seconds=3, every_steps=1)), corpus, end=0)
    first, second = log.sounds
    assert len(first) == 30 and np.array_equal(first, second)
    # The ids drawn are those of a generator of the run's seed, a frame's tracks one behind the other.
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(1, PADDED)
    weights[0, FIRST : FIRST + CODES] = 1 / CODES
    tracks = len(TRACKS[source])
    drawn = [int(torch.multinomial(weights, 1, generator=generator)) - FIRST for _ in range(30 * tracks)]
    assert first * 1000 == pytest.approx(np.array(drawn).reshape(30, tracks).sum(axis=1), abs=1e-3)

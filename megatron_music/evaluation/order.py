"""Has a model learned music or a bag of codes? How much the loss of audio rises when its frames come in another order.

A model of codes that were shuffled in time learns which codes a song has, beats a bigram that knows no song, and may
even follow the words a little. What it can't have learned is order: to it, the same frames in a random order are as
likely. Frames are shuffled within their span, all tracks of a frame together.
"""

from pathlib import Path

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.sampling import grammar_of, spans_of
from megatron_music.evaluation.following import Following, of_songs
from megatron_music.evaluation.intervals import Interval, mean_interval
from megatron_music.evaluation.loss import document_nats
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import AUDIO_KINDS


def order_rise(
    model: str | Path,
    source: str | Path,
    own: Following,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Interval:
    """Nats an audio token that documents cost more with their frames shuffled than as they are, over songs.

    ``own`` is what ``text_following`` found of the same model and source: the loss of the documents as they are.
    """
    folder, corpus = ModelFolder.open(model), IndexedSource(source)
    grammar = grammar_of(corpus, folder.vocabulary)
    network, rng = folder.network(device, dtype), np.random.default_rng(seed)
    shuffled, is_audio = [], []
    for number in own.documents:
        ids, kinds = corpus.document(number)
        shuffled.append(with_frames_shuffled(ids, grammar, rng))
        is_audio.append(np.isin(kinds, AUDIO_KINDS))
    nats = document_nats(network, shuffled, folder.vocabulary.special("<EOD>"), folder.positions)
    shuffled_D = np.array([nats_N[audio_N].sum() for nats_N, audio_N in zip(nats, is_audio, strict=True)])
    rise_D = shuffled_D - own.audio_nats_D
    return mean_interval(of_songs(rise_D, own.song_D), of_songs(own.audio_tokens_D, own.song_D))


def with_frames_shuffled(ids: np.ndarray, grammar: AudioGrammar, rng: np.random.Generator) -> np.ndarray:
    """A document with the frames of each span in a random order; what is left of a cut frame stays."""
    shuffled = ids.copy()
    for span in spans_of(ids, grammar):
        whole = slice(span.start, span.stop - (span.stop - span.start) % grammar.period)
        shuffled[whole] = rng.permutation(ids[whole].reshape(-1, grammar.period)).reshape(-1)
    return shuffled

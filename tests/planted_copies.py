"""Small corpora of random codes for the tests of copies."""

import numpy as np

from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import CodecRange

SMALL = CodecRange("embedded", "<embedded>", 306, 4, 16)
XCODEC = CodecRange("xcodec", "<xcodec>", 45334, 12, 1024)


def write_songs(prefix, songs, codec):
    """A source of documents: some text, then each song's tracks, int (2, T), interleaved in two spans."""
    with IndexedWriter(prefix, {"vocabulary": {"name": "test"}}) as writer:
        for tracks_2T in songs:
            ids = codec.ids(np.asarray(tracks_2T).T.ravel()[None])[0]
            kinds = np.tile([Kind.VOCAL, Kind.ACCOMPANIMENT], len(ids) // 2).astype(np.uint8)
            half = len(ids) // 4 * 2
            text = np.zeros(3, np.int32), np.full(3, Kind.TEXT, np.uint8)
            parts = [text, (ids[:half], kinds[:half]), text, (ids[half:], kinds[half:])]
            writer.add(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return prefix


def random_songs(count, frames, codec, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, codec.codebook_size, (2, frames)) for _ in range(count)]

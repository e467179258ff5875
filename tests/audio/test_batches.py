"""Batches of tracks give what each track gives alone; windows give what they promise."""

from collections.abc import Sequence

import numpy as np
import pytest

from megatron_music.audio.batches import encode_tracks
from megatron_music.audio.codec import Codec
from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.huggingface import Dac, EnCodec, XCodec
from megatron_music.errors import InputError

LENGTHS = [16_000, 0, 24_000, 16_000, 5, 24_000, 16_000, 8_080]


@pytest.fixture(scope="module", params=["xcodec", "encodec", "dac", "embedded"])
def codec(request, sing) -> Codec:
    if request.param == "embedded":
        return EmbeddedCodec.fit([sing(10, 0)], codebooks=3, codebook_size=32)
    model = request.getfixturevalue(f"{request.param}_model")
    return {"xcodec": XCodec, "encodec": EnCodec, "dac": Dac}[request.param](model)


@pytest.fixture(scope="module")
def tracks(sing) -> list[np.ndarray]:
    return [sing(2, seed)[:length] for seed, length in enumerate(LENGTHS)]


def assert_equal_codes(found, expected):
    assert len(found) == len(expected)
    for codes_KT, expected_KT in zip(found, expected, strict=True):
        assert codes_KT.dtype == np.int16
        np.testing.assert_array_equal(codes_KT, expected_KT)


def test_a_batch_gives_what_each_gives_alone(codec, tracks):
    alone = [codec.encode(samples) for samples in tracks]
    assert_equal_codes(codec.encode_batch(tracks), alone)
    for batch_seconds in (0, 1.7, 3, 100):
        assert_equal_codes(list(encode_tracks(codec, iter(tracks), batch_seconds)), alone)
    assert list(encode_tracks(codec, [], 3)) == [] and codec.encode_batch([]) == []


def test_long_tracks_of_a_batch_go_in_pieces_together(xcodec_model, sing):
    codec = XCodec(xcodec_model)
    codec.longest_piece_seconds, codec.context_seconds = 1.0, 0.2
    tracks = [sing(2.5, seed) for seed in range(3)]
    calls = []
    encode_pieces = codec._encode
    codec._encode = lambda samples_BCS: calls.append(len(samples_BCS)) or encode_pieces(samples_BCS)
    together = codec.encode_batch(tracks)
    assert calls == [3, 3, 3]
    assert_equal_codes(together, [codec.encode(samples) for samples in tracks])


def test_windows_give_what_the_codec_gives_of_each_window(codec, sing):
    rate, hop = codec.sample_rate, round(codec.sample_rate / codec.frames_per_second)
    tracks = [sing(5, seed)[: round(seconds * rate)] for seed, seconds in enumerate([2, 1, 2.41, 0.3])]
    two, one, long, short = encode_tracks(codec, tracks, batch_seconds=3, window_seconds=1)
    np.testing.assert_array_equal(one, codec.encode(tracks[1]))
    np.testing.assert_array_equal(two, np.concatenate([codec.encode(half) for half in np.split(tracks[0], 2)], axis=1))
    frames, window = -(-len(tracks[2]) // hop), rate // hop
    assert long.shape == (codec.codebooks, frames)
    np.testing.assert_array_equal(long[:, :window], codec.encode(tracks[2][:rate]))
    last = np.pad(tracks[2][(frames - window) * hop :], (0, frames * hop - len(tracks[2])))
    np.testing.assert_array_equal(long[:, 2 * window :], codec.encode(last)[:, 3 * window - frames :])
    padded_KT = codec.encode(np.pad(tracks[3], (0, rate - len(tracks[3]))))
    np.testing.assert_array_equal(short, padded_KT[:, : -(-len(tracks[3]) // hop)])
    assert next(encode_tracks(codec, [np.zeros(0)], 3, 1)).shape == (codec.codebooks, 0)


def test_all_windows_of_many_songs_have_one_shape(xcodec_model, sing):
    codec = XCodec(xcodec_model)
    shapes = []
    encode = codec._encode
    codec._encode = lambda samples_BCS: shapes.append(tuple(samples_BCS.shape)) or encode(samples_BCS)
    list(encode_tracks(codec, [sing(seconds, 0) for seconds in (1.5, 2.2, 1)], batch_seconds=2, window_seconds=0.5))
    assert shapes == [(4, 1, 8_000)] * 2 + [(2, 1, 8_000)]


def test_windows_of_the_embedded_codec_change_few_codes(sing):
    codec, samples = EmbeddedCodec.fit([sing(10, 0)], codebooks=3, codebook_size=32), sing(30, 1)
    (codes_KT,) = encode_tracks(codec, [samples], window_seconds=5)
    assert 0.98 < (codes_KT == codec.encode(samples)).mean() < 1


class Choosy:
    """Fails on batches of more than one, and on audio that starts with 1."""

    name, sample_rate, frames_per_second, codebooks, codebook_size = "choosy", 100, 50.0, 1, 2

    def encode(self, samples: np.ndarray) -> np.ndarray:
        return self.encode_batch([samples])[0]

    def encode_batch(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(batch) > 1 or batch[0][0] == 1:
            raise RuntimeError("out of memory")
        return [np.full((1, len(samples) // 2), samples[0], np.int16) for samples in batch]


@pytest.mark.parametrize("window_seconds", [None, 1])
def test_a_track_that_fails_takes_no_other_with_it(window_seconds):
    tracks = [np.full(200, value, np.float32) for value in (0, 1, 2)]
    first, second, third = encode_tracks(Choosy(), tracks, 100, window_seconds)
    assert (first == 0).all() and (third == 2).all() and first.shape == third.shape == (1, 100)
    assert isinstance(second, RuntimeError)


def test_a_window_of_broken_frames_is_refused():
    with pytest.raises(InputError, match="--window-seconds: 0.05 s are 2.5 frames of choosy; name a length"):
        next(encode_tracks(Choosy(), [np.zeros(9)], 0, 0.05))

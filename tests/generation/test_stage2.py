"""Stage 2 against decoding frame by frame over the whole prefix."""

import numpy as np
import pytest
import torch

from megatron_music.errors import InputError
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.stage2 import refine

CODEBOOKS, SIZE, FIRST = 4, 16, 306
SOA, STAGE_1, STAGE_2 = 301, 303, 304


def refined_on_the_whole_prefix(network, codes_T, window_frames):
    """Every id from a forward pass over all ids before it, best id of the codebook that is due."""
    out = []
    for start in range(0, len(codes_T), window_frames):
        forced = [FIRST + int(code) for code in codes_T[start : start + window_frames]]
        ids = [SOA, STAGE_1, *forced, STAGE_2]
        for id in forced:
            frame = [id - FIRST]
            ids.append(id)
            for codebook in range(1, CODEBOOKS):
                with torch.inference_mode():
                    logits = network(torch.tensor([ids])).logits[0, -1]
                first = FIRST + codebook * SIZE
                frame.append(int(logits[first : first + SIZE].argmax()))
                ids.append(first + frame[-1])
            out.append(frame)
    return np.array(out, dtype=np.int16).T


@pytest.fixture
def folder(make_model):
    return ModelFolder.open(make_model("stage2", positions=128, seed=2))


@pytest.fixture
def tracks():
    rng = np.random.default_rng(0)
    return [rng.integers(0, SIZE, 29).astype(np.int16), rng.integers(0, SIZE, 27).astype(np.int16)]


def test_all_windows_of_both_tracks_equal_the_uncached_codes(folder, tracks):
    network = folder.network()
    expected = [refined_on_the_whole_prefix(network, codes, 12) for codes in tracks]
    for windows_at_once in (1, 4, 16):
        codes = refine(
            folder, network, tracks, folder.vocabulary.codec(), CODEBOOKS, 12, windows_at_once=windows_at_once
        )
        for found, wanted, given in zip(codes, expected, tracks, strict=True):
            assert found.dtype == np.int16
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(found[0], given)


def test_windows_shrink_to_the_positions(folder, tracks):
    network = folder.network()
    codes = refine(folder, network, tracks, folder.vocabulary.codec(), CODEBOOKS)
    np.testing.assert_array_equal(codes[0], refined_on_the_whole_prefix(network, tracks[0], (128 - 2) // 5))


def test_empty_tracks_and_single_frames(folder):
    tracks = [np.zeros(0, dtype=np.int16), np.array([3], dtype=np.int16)]
    codes = refine(folder, folder.network(), tracks, folder.vocabulary.codec(), CODEBOOKS)
    assert [found.shape for found in codes] == [(4, 0), (4, 1)]


def test_a_model_without_room_for_a_frame_is_refused(make_model, tracks):
    small = ModelFolder.open(make_model("stage2", positions=6))
    with pytest.raises(InputError, match="6 positions hold no stage-2 frame"):
        refine(small, small.network(), tracks, small.vocabulary.codec(), CODEBOOKS)

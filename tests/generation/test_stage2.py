"""Stage 2 against decoding frame by frame over the whole prefix."""

import json

import numpy as np
import pytest
import torch

from megatron_music.errors import InputError
from megatron_music.generation import stage2
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.stage2 import WindowForm, refine

SIZE, FIRST = 16, 306
SOA, STAGE_1, STAGE_2 = 301, 303, 304


def refined_on_the_whole_prefix(network, codes_T, form):
    """Every id from a forward pass over all ids before it, best id of the codebook that is due."""
    out = []
    for start in range(0, len(codes_T), form.frames):
        forced = [FIRST + int(code) for code in codes_T[start : start + form.frames]]
        ids = [SOA, STAGE_1, *forced, STAGE_2]
        for id in forced:
            frame = [id - FIRST]
            if form.repeats_codebook_0:
                ids.append(id)
            for codebook in range(1, form.codebooks):
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


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("codebooks", [4, 2])
def test_all_windows_of_both_tracks_equal_the_uncached_codes(folder, tracks, repeats, codebooks):
    network, form = folder.network(), WindowForm(folder.vocabulary.codec(), codebooks, repeats, 12)
    expected = [refined_on_the_whole_prefix(network, codes, form) for codes in tracks]
    for windows_at_once in (1, 4, None):
        codes = refine(folder, network, tracks, form, windows_at_once)
        for found, wanted, given in zip(codes, expected, tracks, strict=True):
            assert found.dtype == np.int16
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(found[0], given)


def test_the_form_is_that_of_the_training_documents_as_far_as_the_positions_hold_it(make_model):
    path = make_model("stage2", positions=512)
    codec = ModelFolder.open(path).vocabulary.codec()
    assert WindowForm.of(ModelFolder.open(path), codec) == WindowForm(codec, 4, True, (512 - 2) // 5)
    options = {"codebooks": 3, "repeat_codebook_0": False, "window_s": 1.5, "frames_per_second": 20.0}
    documents = {
        "codec": "embedded",
        "context_tokens": 512,
        "sources": {"pairs": {"task": "residual", "options": options, "shares": {}}},
    }
    (path / "documents.json").write_text(json.dumps(documents))
    assert WindowForm.of(ModelFolder.open(path), codec) == WindowForm(codec, 3, False, 30)


def test_the_longest_window_fills_the_positions(folder, tracks):
    network, form = folder.network(), WindowForm.of(folder, folder.vocabulary.codec())
    assert form.frames == 25
    codes = refine(folder, network, tracks, form)
    np.testing.assert_array_equal(codes[0], refined_on_the_whole_prefix(network, tracks[0], form))


def test_batches_are_as_even_as_the_memory_of_the_caches_allows(folder, tracks, monkeypatch):
    network, form = folder.network(), WindowForm(folder.vocabulary.codec(), 4, True, 12)
    batches = []
    plain = stage2._refine_batch

    def recording(network, vocabulary, form, windows, steps):
        batches.append(len(windows))
        return plain(network, vocabulary, form, windows, steps)

    monkeypatch.setattr(stage2, "_refine_batch", recording)
    refine(folder, network, tracks, form)
    # 2 layers x (keys and values) x 2 heads x 8 numbers x 62 positions x 4 bytes a window, of which there are 6.
    monkeypatch.setattr(stage2, "CACHE_BYTES", 5 * 2 * 2 * 2 * 8 * 62 * 4)
    refine(folder, network, tracks, form)
    monkeypatch.setattr(stage2, "CACHE_BYTES", 1)
    refine(folder, network, tracks, form)
    assert batches == [6, 3, 3, *[1] * 6]


def test_empty_tracks_and_single_frames(folder):
    tracks = [np.zeros(0, dtype=np.int16), np.array([3], dtype=np.int16)]
    codes = refine(folder, folder.network(), tracks, WindowForm(folder.vocabulary.codec(), 4))
    assert [found.shape for found in codes] == [(4, 0), (4, 1)]


def test_a_model_without_room_for_a_frame_is_refused(make_model):
    small = ModelFolder.open(make_model("stage2", positions=6))
    with pytest.raises(InputError, match="6 positions hold no stage-2 frame"):
        WindowForm.of(small, small.vocabulary.codec())

"""Held-out loss against transformers' own, and its bookkeeping: every token once."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from megatron_music.corpus import fingerprint
from megatron_music.corpus.indexed import IndexedSource, IndexedWriter
from megatron_music.errors import InputError
from megatron_music.evaluation.loss import document_nats, held_out_loss, packed_windows, token_nats, window_nats
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.kinds import AUDIO_KINDS, Kind

EOD = 300


def write_source(prefix, lengths, about=None, seed=0):
    rng = np.random.default_rng(seed)
    with IndexedWriter(prefix, about) as writer:
        for length in lengths:
            writer.add(rng.integers(0, 370, length).astype(np.int32), rng.integers(0, 4, length).astype(np.uint8))
    return prefix


@pytest.mark.parametrize("lengths", [[1], [7], [8], [3, 30, 1, 1, 9], [16, 8, 8]])
def test_windows_score_every_token_once_in_order(tmp_path, lengths):
    source = IndexedSource(write_source(tmp_path / "songs", lengths))
    whole_ids, whole_kinds = (
        np.concatenate(parts) for parts in zip(*map(source.document, range(len(source))), strict=True)
    )
    windows = list(packed_windows(source, 8, EOD))
    np.testing.assert_array_equal(np.concatenate([ids[1:] for ids, _ in windows]), whole_ids)
    np.testing.assert_array_equal(np.concatenate([kinds for _, kinds in windows]), whole_kinds)
    stream = np.concatenate([[EOD], whole_ids])
    assert [int(ids[0]) for ids, _ in windows] == stream[:-1:8].tolist()
    assert all(len(kinds) == 8 for _, kinds in windows[:-1])


@pytest.mark.parametrize("windows_at_once", [1, 4])
def test_loss_equals_the_networks_own_window_by_window(make_model, tmp_path, windows_at_once, monkeypatch):
    monkeypatch.setattr("megatron_music.evaluation.loss.SCORED_AT_ONCE", 13)
    path = make_model("model", positions=24)
    prefix = write_source(tmp_path / "songs", [50, 20, 41])
    source = IndexedSource(prefix)
    ids, kinds = (np.concatenate(parts) for parts in zip(*map(source.document, range(3)), strict=True))
    ids = np.concatenate([[EOD], ids])
    network = ModelFolder.open(path).network()
    nats = []
    for start in range(0, len(kinds), 24):
        window = torch.from_numpy(ids[start : start + 25]).long()[None]
        with torch.inference_mode():
            logits = network(window[:, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
    nats = np.array(nats)
    found = held_out_loss(path, prefix, windows_at_once=windows_at_once)
    assert found.tokens_K.tolist() == np.bincount(kinds, minlength=len(Kind)).tolist()
    for kind in (Kind.TEXT, Kind.SPECIAL, Kind.VOCAL, Kind.ACCOMPANIMENT):
        assert found.mean([kind]) == pytest.approx(nats[kinds == kind].mean(), rel=1e-4)
    assert found.mean() == pytest.approx(nats.mean(), rel=1e-4)
    assert found.audio == pytest.approx(nats[np.isin(kinds, AUDIO_KINDS)].mean(), rel=1e-4)
    assert set(found.groups()) == {"text", "special", "vocal", "accompaniment"}
    assert found.mean([Kind.MIX]) is None


@pytest.mark.parametrize("length", [None, 12])
def test_windows_are_read_side_by_side_padded_to_one_length(make_model, length):
    """Bit for bit what ``token_nats`` gives of the padded rows, and of each window alone but for rounding."""
    network = ModelFolder.open(make_model("model", positions=24)).network()
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, 370, size) for size in (9, 12, 4, 2, 7)]
    found = list(window_nats(network, iter(windows), EOD, 2, length))
    assert [len(nats_T) for nats_T in found] == [8, 11, 3, 1, 6]
    for first, padded_to in ((0, 12), (2, 4), (4, 7)):
        rows = [[*ids, *[EOD] * ((length or padded_to) - len(ids))] for ids in windows[first : first + 2]]
        with torch.inference_mode():
            expected_BT = token_nats(network, torch.tensor(rows))
        for nats_T, expected_T in zip(found[first : first + 2], expected_BT, strict=True):
            np.testing.assert_array_equal(nats_T, expected_T[: len(nats_T)])
    for nats_T, ids in zip(found, windows, strict=True):
        np.testing.assert_allclose(nats_T, next(window_nats(network, [ids], EOD, 1)), rtol=1e-4)
    assert list(window_nats(network, [], EOD, 2)) == []


def test_documents_are_read_alone_and_cut_at_the_context(make_model):
    network = ModelFolder.open(make_model("model", positions=24)).network()
    documents = [np.random.default_rng(size).integers(0, 370, size).astype(np.int32) for size in (50, 0, 24, 3)]
    found = document_nats(network, documents, EOD, 24)
    for ids, nats_N in zip(documents, found, strict=True):
        whole = np.concatenate([[EOD], ids])
        parts = [next(window_nats(network, [whole[at : at + 25]], EOD, 1)) for at in range(0, len(ids), 24)]
        np.testing.assert_allclose(nats_N, np.concatenate([*parts, []]), rtol=1e-4)


def test_a_shorter_context_is_used_and_a_longer_one_refused(make_model, tmp_path):
    path, prefix = make_model("model", positions=24), write_source(tmp_path / "songs", [50])
    whole, short = held_out_loss(path, prefix), held_out_loss(path, prefix, context_tokens=5)
    assert whole.tokens_K.sum() == short.tokens_K.sum() == 50
    assert whole.mean() != short.mean()
    with pytest.raises(InputError, match="context_tokens: 25 is not 1 to the model's 24"):
        held_out_loss(path, prefix, context_tokens=25)


def test_sources_of_another_vocabulary_are_refused(make_model, tmp_path):
    path = make_model("model", positions=24)
    vocabulary = ModelFolder.open(path).vocabulary
    right = {"vocabulary": {"name": "tiny", "fingerprint": fingerprint.of_value(asdict(vocabulary))}}
    held_out_loss(path, write_source(tmp_path / "right", [9], right))
    wrong = json.loads(json.dumps(right).replace("tiny", "yue").replace('nt": "', 'nt": "0'))
    with pytest.raises(InputError, match="wrong: was built with the vocabulary yue"):
        held_out_loss(path, write_source(tmp_path / "wrong", [9], wrong))


def test_an_empty_source_is_refused(make_model, tmp_path):
    with pytest.raises(InputError, match="holds no tokens"):
        held_out_loss(make_model("model"), write_source(tmp_path / "empty", []))

"""Probes of a random network on clips whose label their codes give away, or do not; measures against mir_eval."""

import json

import numpy as np
import pytest
import torch
from mir_eval.key import weighted_score
from sklearn.metrics import average_precision_score, roc_auc_score

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import read_audio, write_audio
from megatron_music.documents.document import DocumentContext
from megatron_music.documents.unconditional import UnconditionalOptions, documents
from megatron_music.errors import InputError
from megatron_music.evaluation.probing import features as features_module
from megatron_music.evaluation.probing.clips import KEYS, Task, read_clips
from megatron_music.evaluation.probing.features import FeatureReader
from megatron_music.evaluation.probing.metrics import interval, refined_key_accuracy, scores
from megatron_music.evaluation.probing.probes import ProbeSet, measures_of, probe_model
from megatron_music.generation.models import ModelFolder
from megatron_music.songs.song import Song

CLIPS, FRAMES = 80, 40


@pytest.fixture(scope="module")
def model(write_model, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("probed") / "model", positions=128)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Codes of clips that are mostly low or mostly high, as strongly as their valence says; two tags tell halves."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rows = []
    for number in range(CLIPS):
        high = rng.uniform(0.1, 0.9)
        codes = np.where(rng.random(FRAMES) < high, rng.integers(8, 16, FRAMES), rng.integers(0, 8, FRAMES))
        np.save(folder / f"{number}.npy", codes[None].astype(np.int16))
        share = float((codes >= 8).mean())
        label, split = "high" if share >= 0.5 else "low", ("train", "train", "valid", "test")[number % 4]
        rows.append(
            {"path": f"{number}.npy", "split": split, "genre": label, 
             "key": {"low": "C major", "high": "F# minor"}[label],
             "tags": [label, "clip"] if number % 3 else [label], "valence": share, "arousal": 5 - 20 * share}
        )  # fmt: skip
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labels = rng.permutation([row["genre"] for row in rows])
    shuffled = [{"path": r["path"], "split": r["split"], "genre": str(x)} for r, x in zip(rows, labels, strict=True)]
    (folder / "shuffled.jsonl").write_text("\n".join(map(json.dumps, shuffled)))
    return folder


def test_labels_that_the_codes_give_away_are_told_and_shuffled_ones_are_not(model, clips):
    found = probe_model(model, ProbeSet(clips / "clips.jsonl"))
    tasks = found["tasks"]
    assert found["problems"] == [] and list(tasks) == ["genre", "key", "tags", "emotion"]
    assert tasks["genre"]["clips"] == {"train": 40, "valid": 20, "test": 20} and tasks["genre"]["labels"] == 2
    assert tasks["genre"]["test"]["accuracy"] >= 0.9
    assert tasks["key"]["test"]["refined_accuracy"] >= 0.9 and tasks["key"]["labels"] == 24
    assert tasks["emotion"]["test"]["r2_valence"] >= 0.9 and tasks["emotion"]["test"]["r2_arousal"] >= 0.9
    assert tasks["emotion"]["constant"]["r2"] <= 0 and tasks["tags"]["constant"]["auc"] == 0.5
    assert 0.75 <= tasks["tags"]["test"]["auc"] <= 1  # two tags that are told, one that is not: (1 + 1 + 1/2) / 3
    for told in tasks.values():
        assert set(told["valid_by_layer"]) == {"0", "1", "2", "weighted"}
        assert told["valid"] == max(told["valid_by_layer"].values()) == told["valid_by_layer"][told["layer"]]
        for measure, (low, high) in told["intervals"].items():
            assert low <= told["test"][measure] <= high
    numbers = measures_of(found)
    assert set(numbers) == {
        "probe_genre_accuracy", "probe_key_refined_accuracy", "probe_tags_ap", "probe_tags_auc", "probe_emotion_r2",
        "probe_emotion_r2_valence", "probe_emotion_r2_arousal",
    }  # fmt: skip
    chance = probe_model(model, ProbeSet(clips / "shuffled.jsonl"))["tasks"]["genre"]
    assert 0.2 <= chance["test"]["accuracy"] <= 0.8
    # The same again, number for number, and from the cache alone.
    assert probe_model(model, ProbeSet(clips / "shuffled.jsonl"))["tasks"]["genre"] == chance


def test_features_are_the_mean_hidden_states_behind_an_unconditional_documents_opening(model, clips, tmp_path):
    folder = ModelFolder.open(model)
    probes = ProbeSet(clips / "clips.jsonl")
    found = FeatureReader(folder, None, tmp_path / "cache").read(probes.clips[:3], clips)
    context = DocumentContext(folder.vocabulary, folder.tokenizer(), folder.vocabulary.codec())
    song = Song("1", codes={"mix": "1.npy"}, folder=clips)
    options = UnconditionalOptions(code_rate_tolerance=None)
    document = documents(song, context, np.random.default_rng(0), options)[0]
    audio = np.flatnonzero(document.kinds == 4)
    with torch.inference_mode():
        ids = torch.from_numpy(document.ids[: audio[-1] + 1]).long()[None]
        hidden = folder.network(dtype="float32").model(ids, output_hidden_states=True).hidden_states
    assert len(audio) == FRAMES and found.layers_NLH.shape == (3, 3, 32)
    for layer, states in enumerate(hidden):
        np.testing.assert_allclose(found.layers_NLH[1, layer], states[0, audio].mean(0), rtol=1e-4, atol=1e-5)


def test_long_clips_are_read_in_pieces_and_from_the_middle(model, clips, tmp_path, monkeypatch):
    folder = ModelFolder.open(model)
    codes = np.random.default_rng(1).integers(0, 16, (1, 500)).astype(np.int16)
    np.save(tmp_path / "long.npy", codes)
    np.save(tmp_path / "middle.npy", codes[:, 200:300])
    (tmp_path / "clips.csv").write_text("path,split,genre\nlong.npy,train,a\nmiddle.npy,train,b\n")
    monkeypatch.setattr(features_module, "SECONDS", 2.0)
    reader = FeatureReader(folder, None, tmp_path / "cache")
    whole = reader.read(read_clips(tmp_path / "clips.csv"), tmp_path).layers_NLH
    np.testing.assert_array_equal(whole[0], whole[1])
    room = reader._room
    assert room < 100
    pieces = [reader._hidden_means(codes[0, 200 + at : min(300, 200 + at + room)]) for at in range(0, 100, room)]
    sizes = [min(room, 100 - at) for at in range(0, 100, room)]
    np.testing.assert_allclose(whole[0], np.average(pieces, axis=0, weights=sizes), rtol=1e-4, atol=1e-5)


def test_the_cache_is_used_as_long_as_nothing_changed_and_mended_where_it_is_damaged(
    model, clips, tmp_path, monkeypatch
):
    reads = []
    monkeypatch.setattr(
        FeatureReader, "_hidden_means", lambda self, codes_T: reads.append(1) or np.full((3, 32), codes_T.mean(), "f4")
    )
    np.save(tmp_path / "a.npy", np.zeros((1, 9), np.int16))
    (tmp_path / "clips.csv").write_text("path,split,genre\na.npy,train,x\n")
    listed = read_clips(tmp_path / "clips.csv")

    def read():
        return (
            FeatureReader(ModelFolder.open(model), None, tmp_path / "cache").read(listed, tmp_path).layers_NLH[0, 0, 0]
        )

    assert (read(), read(), len(reads)) == (0, 0, 1)
    np.save(tmp_path / "a.npy", np.ones((2, 99), np.int16))
    assert (read(), read(), len(reads)) == (1, 1, 2)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert (read(), len(reads)) == (1, 3)


def test_clips_that_cannot_be_read_are_named_and_the_others_probed(model, clips, tmp_path):
    rows = [json.loads(line) for line in (clips / "clips.jsonl").read_text().splitlines()]
    rows = [{"path": str(clips / row["path"]), "split": row["split"], "genre": row["genre"]} for row in rows]
    (tmp_path / "cut.npy").write_bytes((clips / "0.npy").read_bytes()[:-3])
    np.save(tmp_path / "high.npy", np.full((1, 9), 16, np.int16))
    bad = [
        {"path": path, "split": "train", "genre": "low"}
        for path in ("cut.npy", "high.npy", "gone.npy", "s.parquet#a/mix")
    ]
    path = tmp_path / "clips.jsonl"
    path.write_text("\n".join(map(json.dumps, rows + bad)))
    found = probe_model(model, ProbeSet(path))
    assert found["tasks"]["genre"]["clips"]["train"] == 40
    assert [
        p for name, p in zip(("cut", "high", "gone", "s.parquet"), found["problems"], strict=True) if name in p
    ] == found["problems"]
    path.write_text("\n".join(json.dumps(row) for row in [*rows[:2], *bad, rows[2], {**bad[0], "split": "test"}]))
    with pytest.raises(InputError, match="genre: no clip of the split test has a label that can be used .*cut.npy"):
        probe_model(model, ProbeSet(path))
    path.write_text(
        "\n".join(
            json.dumps({**bad[2], "split": split, "genre": g}) for split in ("train", "valid", "test") for g in "xy"
        )
    )
    with pytest.raises(InputError, match="none of 6 clips can be read .*gone.npy"):
        probe_model(model, ProbeSet(path))


def test_audio_is_encoded_by_the_models_codec(write_model, tmp_path):
    model = write_model(tmp_path / "model")
    times = np.arange(16000) / 16000
    tones = {name: (0.3 * np.sin(2 * np.pi * hz * times)).astype(np.float32) for name, hz in (("a", 220), ("b", 440))}
    for name, samples in tones.items():
        write_audio(tmp_path / f"{name}.wav", samples, 16000)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "clips.csv").write_text("path,split,genre\na.wav,train,x\nb.wav,train,x\ntext.wav,test,x\n")
    listed = read_clips(tmp_path / "clips.csv")
    with pytest.raises(InputError, match="codec 'embedded': needs weights"):
        FeatureReader(ModelFolder.open(model), None, tmp_path / "cache").read(listed, tmp_path)
    codec = EmbeddedCodec.fit(list(tones.values()), codebooks=1, codebook_size=16)
    codec.save(model / "codec")
    found = FeatureReader(ModelFolder.open(model), None, tmp_path / "cache").read(listed, tmp_path)
    assert found.clips.tolist() == [0, 1] and "text.wav: can't be read as audio" in found.problems[0]
    np.save(tmp_path / "b.npy", codec.encode(read_audio(tmp_path / "b.wav", 16000))[:1])
    (tmp_path / "codes.csv").write_text("path,split,genre\nb.npy,train,x\n")
    reader = FeatureReader(ModelFolder.open(model), None, tmp_path / "cache")
    codes = reader.read(read_clips(tmp_path / "codes.csv"), tmp_path)
    np.testing.assert_array_equal(codes.layers_NLH[0], found.layers_NLH[1])


def test_refined_key_accuracy_is_mir_evals_mean():
    rng = np.random.default_rng(0)
    truth, ours = rng.integers(0, 24, (2, 500))
    expected = np.mean([weighted_score(KEYS[a], KEYS[b]) for a, b in zip(truth, ours, strict=True)])
    assert refined_key_accuracy(truth, ours) == pytest.approx(expected)
    known = [
        ("C major", "C major", 1),
        ("C major", "G major", 0.5),
        ("C major", "A minor", 0.3),
        ("C major", "C minor", 0.2),
    ]
    for true, said, score in known:
        assert refined_key_accuracy([KEYS.index(true)], [KEYS.index(said)]) == score


def test_measures_are_known_answers():
    def task(kind, labels):
        return Task("t", kind, np.arange(4), labels, np.zeros(4), np.array(["test"] * 4))

    classes = scores(task("classes", ["a", "b"]), np.array([0, 1, 1, 0]), np.array([[2, 1], [0, 1], [3, 1], [1, 0]]))
    assert classes == {"accuracy": 0.75}
    truth = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    said = np.array([[0.9, 0, 0.1], [0.1, 0, 0.8], [0.2, 0, 0.7], [0.4, 0, 0.9]])
    # First tag: 3 of 4 pairs in order, hits at ranks 1 and 3; second: never there, left out; third: in order.
    assert scores(task("tags", list("abc")), truth, said) == pytest.approx({"auc": 0.875, "ap": (5 / 6 + 1) / 2})
    assert scores(task("tags", ["b"]), truth[:, 1:2], said[:, 1:2]) == {}
    numbers = np.array([[1, 0], [2, 0], [3, 4], [4, 4]])
    told = scores(task("emotion", ["valence", "arousal"]), numbers, np.stack([numbers[:, 0], [2, 2, 2, 2]], 1))
    assert told == pytest.approx({"r2": 0.5, "r2_valence": 1, "r2_arousal": 0})
    rng = np.random.default_rng(0)
    many, said = rng.random((60, 5)) < 0.3, rng.integers(0, 9, (60, 5))  # with ties
    told = scores(task("tags", list("abcde")), many.astype("f4"), said)
    assert told == pytest.approx({"auc": roc_auc_score(many, said), "ap": average_precision_score(many, said)})
    hits = np.array([0] * 80 + [1] * 20)
    ours = np.tile([1, 0], (100, 1))
    # Wilson's of 80 of 100; of all keys right the draws have no spread, of 80 of 100 they are near the normal one.
    assert interval(task("classes", ["a", "b"]), hits, ours, "accuracy") == pytest.approx((0.711, 0.867), abs=1e-3)
    ours = np.eye(24)[[KEYS.index("C major")] * 100]
    truth = np.where(hits, KEYS.index("F# minor"), KEYS.index("C major"))
    assert interval(task("key", KEYS), truth, ours, "refined_accuracy") == pytest.approx((0.722, 0.878), abs=0.02)
    assert interval(task("key", KEYS), truth[:80], ours[:80], "refined_accuracy") == (1, 1)


def test_splits_in_which_nothing_can_be_measured_are_named(model, clips, tmp_path):
    rows = [
        {"path": str(clips / f"{n}.npy"), "split": split, "tags": ["x"] if n == 0 else ["x", "y"]}
        for n, split in enumerate(["train", "train", "valid", "valid", "test"])
    ]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="tags: the split valid has too few different clips for ROC-AUC"):
        probe_model(model, ProbeSet(tmp_path / "clips.jsonl"))

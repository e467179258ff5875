import io
import random

import numpy as np
import pytest

from megatron_music.songs.codes import CodesRow, load_codes, write_codes_shard
from megatron_music.songs.song import Rejected, Song
from megatron_music.vocabulary.vocabulary import CodecRange

CODEC = CodecRange("embedded", "<embedded>", 1047, 8, 256)


def _song(folder, name) -> Song:
    return Song("1", {"mix": name}, folder=folder)


def _rows(count: int) -> list[CodesRow]:
    rng = np.random.default_rng(0)
    tracks = ("mix", "vocals", "accompaniment")
    return [
        CodesRow(f"a/{song}", track, "embedded", rng.integers(0, 256, (8, rng.integers(1, 60))))
        for song in range(count)
        for track in tracks
    ]


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint8, np.uint64, ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_of_any_integer_type(tmp_path, dtype, order):
    codes_KT = np.arange(8 * 20).reshape(8, 20)
    np.save(tmp_path / "1.npy", np.asarray(codes_KT, dtype=dtype, order=order))
    loaded = load_codes(_song(tmp_path, "1.npy"), "mix", CODEC)
    assert loaded.dtype == np.int16
    assert np.array_equal(loaded, codes_KT)


@pytest.mark.parametrize(
    ("codes", "rule", "value"),
    [
        (np.full((8, 20), 256), "codes_range", "256"),
        (np.full((8, 20), -1), "codes_range", "-1"),
        (np.full((8, 20), 2**63, dtype=np.uint64), "codes_range", str(2**63)),
        (np.zeros((8, 20), dtype=np.float32), "codes_type", "float32"),
        (np.zeros((8, 20), dtype=bool), "codes_type", "bool"),
        (np.zeros(20, dtype=np.int16), "codes_shape", "(20)"),
        (np.zeros((1, 8, 20), dtype=np.int16), "codes_shape", "(1, 8, 20)"),
        (np.zeros((20, 8), dtype=np.int16), "codes_shape", "(20, 8)"),
        (np.zeros((8, 0), dtype=np.int16), "codes_shape", "(8, 0)"),
    ],
)
def test_unusable_codes_are_rejected(tmp_path, codes, rule, value):
    np.save(tmp_path / "1.npy", codes)
    with pytest.raises(Rejected) as caught:
        load_codes(_song(tmp_path, "1.npy"), "mix", CODEC)
    assert (caught.value.rule, caught.value.value) == (rule, value)


def test_missing_truncated_and_foreign_files_are_rejected(tmp_path):
    np.save(tmp_path / "1.npy", np.zeros((8, 20), dtype=np.int16))
    (tmp_path / "2.npy").write_bytes((tmp_path / "1.npy").read_bytes()[:-1])
    np.savez(tmp_path / "3.npz", codes=np.zeros((8, 20)))
    np.save(tmp_path / "4.npy", np.array([{"a": 1}], dtype=object))
    (tmp_path / "5.npy").write_bytes(b"")
    (tmp_path / "6.npy").mkdir()
    (tmp_path / "7.npy").write_bytes((tmp_path / "1.npy").read_bytes() + b"\0")
    rules = {}
    for name in ("0.npy", "2.npy", "3.npz", "4.npy", "5.npy", "6.npy", "7.npy", "bad\0name.npy"):
        with pytest.raises(Rejected) as caught:
            load_codes(_song(tmp_path, name), "mix", CODEC)
        rules[name] = caught.value.rule
    assert rules.pop("0.npy") == "codes_missing"
    assert set(rules.values()) == {"codes_unreadable"}
    with pytest.raises(Rejected, match="names no vocals codes"):
        load_codes(_song(tmp_path, "1.npy"), "vocals", CODEC)


def test_a_header_that_promises_terabytes_is_rejected(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (8, 10**12)})
    (tmp_path / "1.npy").write_bytes(header.getvalue() + b"\0" * 100)
    with pytest.raises(Rejected, match="codes_unreadable"):
        load_codes(_song(tmp_path, "1.npy"), "mix", CODEC)


def test_a_shard_gives_back_every_row(tmp_path):
    rows = _rows(20)
    write_codes_shard(tmp_path / "codes-00000.parquet", iter(rows))
    for row in random.Random(0).sample(rows, len(rows)):
        song = Song(row.id, {row.track: row.reference("codes-00000.parquet")}, folder=tmp_path)
        assert np.array_equal(load_codes(song, row.track, CODEC), row.codes_KT)


def test_a_shard_written_anew_is_read_anew(tmp_path):
    song = _song(tmp_path, "s.parquet#1/mix")
    for code in (1, 2):
        write_codes_shard(tmp_path / "s.parquet", [CodesRow("1", "mix", "embedded", np.full((8, 10 * code), code))])
        assert load_codes(song, "mix", CODEC)[0].tolist() == [code] * 10 * code


def test_faults_of_a_shard_are_rejected(tmp_path):
    write_codes_shard(tmp_path / "s.parquet", [CodesRow("1", "mix", "xcodec", np.zeros((8, 10)))])
    whole = (tmp_path / "s.parquet").read_bytes()
    (tmp_path / "short.parquet").write_bytes(whole[:-10])
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    rules = {}
    for name in ("none.parquet#1/mix", "s.parquet#2/mix", "s.parquet#1", "s.parquet#1/mix", "short.parquet#1/mix",
                 "junk.parquet#1/mix"):  # fmt: skip
        with pytest.raises(Rejected) as caught:
            load_codes(_song(tmp_path, name), "mix", CODEC)
        rules[name] = caught.value.rule
    assert list(rules.values()) == ["codes_missing"] * 3 + ["codes_codec"] + ["codes_unreadable"] * 2


def test_codes_that_do_not_fit_into_a_shard_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="int16"):
        write_codes_shard(tmp_path / "s.parquet", [CodesRow("1", "mix", "embedded", np.full((8, 10), 40000))])
    assert not list(tmp_path.iterdir())


def test_a_rejection_survives_pickling():
    import pickle

    rejected = pickle.loads(pickle.dumps(Rejected("rule", "two\nlines")))
    assert (rejected.rule, rejected.detail, str(rejected)) == ("rule", "two lines", "rule: two lines")


def test_random_damage_ends_in_codes_or_in_a_reject(tmp_path):
    rng = random.Random(0)
    np.save(tmp_path / "whole.npy", np.random.default_rng(0).integers(0, 256, (8, 100)).astype(np.int16))
    write_codes_shard(tmp_path / "whole.parquet", _rows(4))
    for index in range(300):
        kind = rng.choice(["npy", "parquet"])
        damaged = bytearray((tmp_path / f"whole.{kind}").read_bytes())
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(damaged))]
        name = f"{index}.{kind}"
        (tmp_path / name).write_bytes(damaged)
        reference = name if kind == "npy" else f"{name}#a/1/vocals"
        try:
            codes_KT = load_codes(_song(tmp_path, reference), "mix", CODEC)
            assert codes_KT.dtype == np.int16 and 0 <= codes_KT.min() <= codes_KT.max() < 256
            # a shard has checksums: what it still gives is what was written
            assert kind == "npy" or np.array_equal(codes_KT, _rows(4)[4].codes_KT)
        except Rejected as rejected:
            assert rejected.rule.startswith("codes_") and "\n" not in rejected.detail

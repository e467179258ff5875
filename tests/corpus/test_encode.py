"""From audio to codes: shards, manifest, rejects, restarts."""

from pathlib import Path

import numpy as np
import pytest
from encode_cases import FITTED, OPTIONS, TRACK_FIELDS, contents, make_songs, read_lines, write_lines
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.audio.codec import load_codec
from megatron_music.audio.files import read_audio, write_audio
from megatron_music.corpus import encode, encode_steps
from megatron_music.corpus.encode import encode_manifest
from megatron_music.corpus.encode_finish import Encoded
from megatron_music.corpus.executors import Machines
from megatron_music.errors import InputError
from megatron_music.songs.codes import load_codes
from megatron_music.songs.folder import manifest_of_folder
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.rejects import read_rejects
from megatron_music.vocabulary.vocabulary import CodecRange

ALONE = Machines(workers=1)
SETTINGS = OPTIONS | {"machines": ALONE}
CODES = CodecRange("embedded", "<embedded>", 0, 2, 16)


@pytest.fixture
def songs(tmp_path) -> Path:
    return make_songs(tmp_path / "songs")


def test_all_tracks_are_encoded_and_named(songs, tmp_path):
    out = tmp_path / "deep" / "codes"
    summary = encode_manifest(songs / "manifest.jsonl", out, **SETTINGS)
    assert summary == Encoded(str(out), FITTED, 5, 5 * (102 / 50) / 3600, 3, {})
    names = ["codes-00000.parquet", "codes-00001.parquet", "codes-00002.parquet", "codec", "manifest.jsonl"]
    assert {*names, "rejects.parquet", "encoding.json"} == {p.name for p in out.iterdir() if p.name[0] != "."}
    codec = load_codec("embedded", out / "codec")
    assert (codec.codebooks, codec.codebook_size) == (2, 16)
    encoded = list(read_manifest(out / "manifest.jsonl"))
    assert [song.id for song in encoded] == [f"song-{number}" for number in range(5)]
    for number, song in enumerate(encoded):
        assert song.codes["mix"] == f"codes-{number // 2:05d}.parquet#song-{number}/mix"
        assert song.extra == {"licence": "public domain"} and song.segments[0].extra == {"offset": 0.2}
        assert (song.segments[0].start_frame, song.segments[0].end_frame) == (10, 91)
        assert song.duration_s == 102 / 50
        for frames, track in zip((100, 101, 102), TRACK_FIELDS, strict=True):
            codes_KT = load_codes(song, track, CODES)
            assert codes_KT.shape == (2, frames)
            samples = read_audio(song.audio_path(track), 16_000)
            np.testing.assert_array_equal(codes_KT, codec.encode(samples))


def test_ids_and_folders_with_any_sign_in_them(tmp_path):
    ids = ["#1 hit", "a/b#mix", " blank  s ", "x.parquet#y/vocals", "Cafe\u0301 \u6708\u4eae"]
    songs = make_songs(tmp_path / "run #2" / "songs.parquet", len(ids))
    write_lines(songs, [line | {"id": id} for line, id in zip(read_lines(songs), ids, strict=True)])
    out = tmp_path / "codes #1"
    encode_manifest(songs / "manifest.jsonl", out, **SETTINGS)
    encoded = list(read_manifest(out / "manifest.jsonl"))
    assert [song.id for song in encoded] == ids
    codec = load_codec("embedded", out / "codec")
    for song in encoded:
        for track in TRACK_FIELDS:
            samples = read_audio(song.audio_path(track), 16_000)
            np.testing.assert_array_equal(load_codes(song, track, CODES), codec.encode(samples))


def test_any_number_of_processes_gives_the_same_bytes(songs, tmp_path):
    for name, machines in (("one", ALONE), ("two", Machines(workers=2)), ("few tasks", Machines(tasks=2, workers=1))):
        encode_manifest(songs / "manifest.jsonl", tmp_path / name, **SETTINGS | {"machines": machines})
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "few tasks")


def test_only_shards_of_changed_audio_are_encoded_again(songs, tmp_path):
    out = tmp_path / "codes"
    encode_manifest(songs / "manifest.jsonl", out, **SETTINGS)
    times = [path.stat().st_mtime_ns for path in sorted(out.glob("codes-*.parquet"))]
    write_audio(songs / "2" / "mix.flac", 0.1 * np.ones(16_000, np.float32), 16_000)
    lines = read_lines(songs)
    lines[0]["genres"] = "waltz"
    write_lines(songs, lines[:4])
    assert encode_manifest(songs / "manifest.jsonl", out, **SETTINGS).shards == 2
    again = [path.stat().st_mtime_ns for path in sorted(out.glob("codes-*.parquet"))]
    assert len(again) == 2 and again[0] == times[0] and again[1] != times[1]
    encoded = list(read_manifest(out / "manifest.jsonl"))
    assert len(encoded) == 4 and encoded[0].genres == "waltz"
    assert load_codes(encoded[2], "mix", CODES).shape == (2, 50)


def test_codes_of_two_codecs_are_not_mixed_in_one_folder(songs, tmp_path):
    encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", **SETTINGS)
    with pytest.raises(InputError, match="codes: holds codes of another making: codebooks is 2, not 1; remove"):
        encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", **SETTINGS | {"codebooks": 1})


def test_songs_without_usable_audio_are_rejected_by_name(songs, tmp_path):
    (songs / "1" / "vocals.flac").unlink()
    (songs / "2" / "mix.flac").write_bytes(b"not audio")
    lines = read_lines(songs)
    lines += [{"id": "silent"}, {"no": "id"}]
    write_lines(songs, lines)
    summary = encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", **SETTINGS)
    assert (summary.songs, summary.shards) == (3, 4)
    assert summary.rejected == {"audio_missing": 2, "audio_unreadable": 1, "missing_id": 1}
    rejects = {reject.id: reject for reject in read_rejects(tmp_path / "codes" / "rejects.parquet")}
    assert {id: reject.rule for id, reject in rejects.items()} == {
        "song-1": "audio_missing",
        "song-2": "audio_unreadable",
        "silent": "audio_missing",
        "": "missing_id",
    }
    assert "1/vocals.flac: no such file" in rejects["song-1"].detail
    assert {song.id for song in read_manifest(tmp_path / "codes" / "manifest.jsonl")} == {"song-0", "song-3", "song-4"}


def test_a_manifest_of_audio_with_wrong_headers_has_the_lengths_that_encode_reads(tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    seconds = np.arange(48_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * 220 * seconds * (1 + 0.2 * seconds)).astype(np.float32)
    for name in ("pipe.flac", "killed.wav", "bare.mp3", "cut.mp3", "short.wav", "twice.ogg", "nan.wav"):
        write_audio(recordings / name, tone, 16_000, subtype="FLOAT" if name == "nan.wav" else "PCM_16")
    content = {path.name: path.read_bytes() for path in recordings.iterdir()}
    flac, mp3 = content["pipe.flac"], content["bare.mp3"]
    (recordings / "pipe.flac").write_bytes(flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:])
    (recordings / "killed.wav").write_bytes(content["killed.wav"][:40] + bytes(4) + content["killed.wav"][44:])
    (recordings / "bare.mp3").write_bytes(mp3[mp3.index(mp3[:2], 4) :])  # less the frame that tells the length
    (recordings / "cut.mp3").write_bytes(mp3[: len(mp3) // 2])
    (recordings / "short.wav").write_bytes(content["short.wav"][:-9000])
    (recordings / "twice.ogg").write_bytes(2 * content["twice.ogg"])
    (recordings / "nan.wav").write_bytes(content["nan.wav"][:-4] + b"\xff\xff\xff\x7f")
    manifest_of_folder(recordings, tmp_path / "songs")
    listed = {song.id: song.duration_s for song in read_manifest(tmp_path / "songs" / "manifest.jsonl")}
    assert listed.keys() == {"bare", "killed", "nan", "pipe", "short", "twice"}
    assert (listed["killed"], listed["pipe"], listed["short"], listed["twice"]) == (3.0, 3.0, 2.719, 6.0)
    (reject,) = read_rejects(tmp_path / "songs" / "rejects.parquet")
    assert (reject.id, reject.rule) == ("cut", "audio_unreadable")
    assert reject.detail.endswith("of the 3.00 s that it announces; copy or export the file again")
    summary = encode_manifest(tmp_path / "songs" / "manifest.jsonl", tmp_path / "codes", **SETTINGS)
    assert (summary.songs, summary.rejected) == (5, {"audio_unreadable": 1})
    for song in read_manifest(tmp_path / "codes" / "manifest.jsonl"):
        assert load_codes(song, "mix", CODES).shape[1] == pytest.approx(50 * listed[song.id], abs=1)
    (reject,) = read_rejects(tmp_path / "codes" / "rejects.parquet")
    assert reject.id == "nan" and "samples that are not finite numbers" in reject.detail


def test_the_verb_tells_what_it_made_and_left_out_and_fails_where_that_is_too_much(songs, tmp_path):
    (songs / "1" / "vocals.flac").unlink()
    (songs / "2" / "mix.flac").write_bytes(b"not audio")
    out, sizes = tmp_path / "codes", [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    told = (
        "songs        3 of 5 are encoded\nhours        0.00\nshards       3\n"
        f"codec        {FITTED}\nrejected     2\n"
        f"  audio_missing      1\n  audio_unreadable   1\n  each with its reason: megatron-music rejects {out}\n"
        f"written      {out}/manifest.jsonl\n"
    )
    command = ["encode", str(songs / "manifest.jsonl"), str(out), *sizes, "--workers=1"]
    ran = CliRunner().invoke(cli.app, command)
    assert (ran.exit_code, ran.stdout) == (0, told)
    ran = CliRunner().invoke(cli.app, [*command, "--max-rejected=0.4"])
    assert (ran.exit_code, ran.stdout) == (0, told)
    ran = CliRunner().invoke(cli.app, [*command, "--max-rejected=0.39"])
    assert ran.stdout == told and str(ran.exception) == (
        f"{out}: 2 of 5 songs were rejected, a larger share than --max-rejected 0.39; "
        "what was written is whole and can be used; mend the songs or raise the share"
    )
    assert len(list(read_manifest(out / "manifest.jsonl"))) == 3


def test_a_fitted_codec_can_be_used_again(songs, tmp_path):
    encode_manifest(songs / "manifest.jsonl", tmp_path / "first", **SETTINGS)
    weights = tmp_path / "first" / "codec"
    encode_manifest(songs / "manifest.jsonl", tmp_path / "second", "embedded", weights, **SETTINGS)
    assert contents(tmp_path / "first" / "codec") == contents(tmp_path / "second" / "codec")
    for shard in (tmp_path / "first").glob("codes-*.parquet"):
        assert shard.read_bytes() == (tmp_path / "second" / shard.name).read_bytes()


class SlowCodec:
    """25 frames a second of nothing, to see segments rescaled."""

    name, sample_rate, frames_per_second, codebooks, codebook_size = "xcodec", 16_000, 25.0, 1, 2

    def encode(self, samples: np.ndarray) -> np.ndarray:
        return np.zeros((1, len(samples) // 640), np.int16)

    def encode_batch(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        return [self.encode(samples) for samples in batch]


def give_codec(monkeypatch, codec: SlowCodec) -> None:
    for room in (encode, encode_steps):
        monkeypatch.setattr(room, "load_codec", lambda *arguments: codec)


def test_segments_are_rescaled_to_the_codecs_frame_rate(songs, tmp_path, monkeypatch):
    give_codec(monkeypatch, SlowCodec())
    encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", "xcodec", "weights", machines=ALONE)
    song = next(read_manifest(tmp_path / "codes" / "manifest.jsonl"))
    assert (song.segments[0].start_frame, song.segments[0].end_frame) == (5, 46)


def test_audio_that_a_codec_fails_on_is_a_reject(songs, tmp_path, monkeypatch):
    class Choosy(SlowCodec):
        def encode(self, samples: np.ndarray) -> np.ndarray:
            if abs(samples[1] - read_audio(songs / "3" / "mix.flac", 16_000)[1]) < 1e-6:
                raise RuntimeError("too choosy")
            return super().encode(samples)

    give_codec(monkeypatch, Choosy())
    encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", "xcodec", "weights", machines=ALONE)
    (reject,) = read_rejects(tmp_path / "codes" / "rejects.parquet")
    assert (reject.id, reject.rule) == ("song-3", "encoding_failed") and "RuntimeError: too choosy" in reject.detail


def test_what_can_not_be_encoded_is_one_line(songs, tmp_path):
    with pytest.raises(InputError, match="none.jsonl: no such file"):
        encode_manifest(songs / "none.jsonl", tmp_path / "codes", machines=ALONE)
    with pytest.raises(InputError, match="codec 'opus': is not known"):
        encode_manifest(songs / "manifest.jsonl", tmp_path / "opus", "opus", machines=ALONE)
    with pytest.raises(InputError, match="--weights"):
        encode_manifest(songs / "manifest.jsonl", tmp_path / "xcodec", "xcodec", machines=ALONE)
    for path in songs.rglob("*.flac"):
        path.unlink()
    with pytest.raises(InputError, match="manifest.jsonl: has no audio to fit a codec on: .*flac: no such file"):
        encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", **SETTINGS)

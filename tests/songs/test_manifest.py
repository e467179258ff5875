import json
from pathlib import Path

import pytest

from megatron_music.errors import InputError
from megatron_music.songs.manifest import read_manifest, read_rejects, write_manifest, write_rejects
from megatron_music.songs.song import Reject, Segment, Song

LINE = {
    "id": "1",
    "codec": "1.npy",
    "vocals_codec": "stems/1.Vocals.npy",
    "instrumental_codec": "/data/1.Instrumental.npy",
    "audio": "1.flac",
    "audio_length_in_sec": 12.5,
    "msa": [{"start": 0, "end": 12.5, "label": "verse", "confidence": 0.9}],
    "genres": "folk, female",
    "language": "en",
    "splitted_lyrics": {
        "source": "web",
        "segmented_lyrics": [
            {
                "offset": 0,
                "duration": 12.5,
                "codec_frame_start": 0,
                "codec_frame_end": 625,
                "line_content": "[verse]\nOne\nTwo\n\n",
            }
        ],
    },
    "licence": {"name": "CC0"},
}


def _write(folder: Path, *lines) -> Path:
    path = folder / "manifest.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def _with(**changes) -> dict:
    return {**LINE, **changes}


def _with_segment(**changes) -> dict:
    segment = {**LINE["splitted_lyrics"]["segmented_lyrics"][0], **changes}
    return _with(splitted_lyrics={"segmented_lyrics": [segment]})


def test_a_song(tmp_path):
    (song,) = read_manifest(_write(tmp_path, LINE))
    assert song.id == "1"
    assert song.codes == {"mix": "1.npy", "vocals": "stems/1.Vocals.npy", "accompaniment": "/data/1.Instrumental.npy"}
    assert song.codes_path("vocals") == (tmp_path / "stems" / "1.Vocals.npy", None)
    assert song.codes_path("accompaniment") == (Path("/data/1.Instrumental.npy"), None)
    assert song.audio_path("mix") == tmp_path / "1.flac"
    assert (song.duration_s, song.genres, song.language) == (12.5, "folk, female", "en")
    assert song.structure[0]["label"] == "verse"
    (segment,) = song.segments
    assert (segment.label, segment.lines) == ("verse", ["One", "Two"])
    assert (segment.start_frame, segment.end_frame) == (0, 625)
    assert song.extra == {"licence": {"name": "CC0"}, "splitted_lyrics": {"source": "web"}}


def test_a_song_may_lack_all_but_the_id(tmp_path):
    (song,) = read_manifest(_write(tmp_path, {"id": "a", "genres": None}))
    assert song == Song(id="a", folder=tmp_path)


def test_unknown_fields_are_written_back(tmp_path):
    songs = list(read_manifest(_write(tmp_path, LINE)))
    write_manifest(tmp_path / "copy.jsonl", songs)
    assert json.loads((tmp_path / "copy.jsonl").read_text()) == LINE


def test_paths_follow_a_manifest_into_another_folder(tmp_path):
    song = Song("1", {"mix": "s.parquet#a/b/mix", "vocals": "/v.npy"}, {"mix": "a.flac"}, folder=tmp_path / "one")
    write_manifest(tmp_path / "two" / "manifest.jsonl", [song])
    (copy,) = read_manifest(tmp_path / "two" / "manifest.jsonl")
    assert copy.codes == {"mix": "../one/s.parquet#a/b/mix", "vocals": "/v.npy"}
    assert copy.audio == {"mix": "../one/a.flac"}
    assert copy.codes_path("mix")[1] == "a/b/mix"


def test_released_data_reads_as_it_is(yue_data, tmp_path):
    songs = list(read_manifest(yue_data / "songs.jsonl"))
    assert [song.id for song in songs] == ["1", "2", "3", "4"]
    assert [segment.label for segment in songs[0].segments] == ["intro", "verse", "chorus", "outro"]
    write_manifest(tmp_path / "copy.jsonl", songs)
    for copied, original in zip((tmp_path / "copy.jsonl").open(), (yue_data / "songs.jsonl").open(), strict=True):
        copied, original = json.loads(copied), json.loads(original)
        for field in ("codec", "vocals_codec", "instrumental_codec"):
            assert (tmp_path / copied.pop(field)).resolve() == (yue_data / original.pop(field)).resolve()
        assert copied == original


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b"{", "not_json"),
        (b"[1]", "not_json"),
        (b"[" * 100000, "not_json"),
        (b'{"id": "\xff"}', "not_utf8"),
        (b'{"id": "a", "genres": "\\ud800"}', "not_utf8"),
        ({"genres": "x"}, "missing_id"),
        (_with(id=""), "wrong_type"),
        (_with(id=[1]), "wrong_type"),
        (_with(id=True), "wrong_type"),
        (_with(codec=3), "wrong_type"),
        (_with(audio={"path": "x"}), "wrong_type"),
        (_with(audio_length_in_sec="12"), "wrong_type"),
        (_with(audio_length_in_sec=float("nan")), "wrong_type"),
        (_with(audio_length_in_sec=10**400), "wrong_type"),
        (_with(audio_length_in_sec=0), "duration"),
        (_with(audio_length_in_sec=-3.0), "duration"),
        (_with(genres=["folk"]), "wrong_type"),
        (_with(msa={"start": 0}), "wrong_type"),
        (_with(msa=["verse"]), "wrong_type"),
        (_with(msa=[{"start": 0, "end": 1}]), "missing_field"),
        (_with(msa=[{"start": 2, "end": 1, "label": "verse"}]), "structure"),
        (_with(splitted_lyrics="la la"), "wrong_type"),
        (_with(splitted_lyrics={"segmented_lyrics": {"0": 1}}), "wrong_type"),
        (_with(splitted_lyrics={"segmented_lyrics": ["la"]}), "wrong_type"),
        (_with_segment(line_content=["la"]), "wrong_type"),
        (_with_segment(line_content=None), "missing_field"),
        (_with_segment(codec_frame_start="0"), "wrong_type"),
        (_with_segment(codec_frame_end=625.5), "wrong_type"),
        (_with_segment(codec_frame_start=-1), "segment_frames"),
        (_with_segment(codec_frame_start=700), "segment_frames"),
    ],
)
def test_a_bad_line_is_a_reject_that_names_rule_and_line(tmp_path, line, rule):
    path = _write(tmp_path, _with(id="first"), b"", line, _with(id="last"))
    first, reject, last = read_manifest(path)
    assert (first.id, last.id) == ("first", "last")
    assert isinstance(reject, Reject)
    assert (reject.rule, reject.where) == (rule, f"{path}: line 3")
    assert "\n" not in reject.detail and len(reject.detail) < 300


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"[1]", "list"),
        (b'{"id": "\xff"}', "8"),
        (_with(audio_length_in_sec=-3.0), "-3.0"),
        (_with(codec=3), "3"),
        (_with(msa=[{"start": 0, "end": 1}]), "label"),
        (_with_segment(codec_frame_end=625.5), "625.5"),
        (_with_segment(codec_frame_start=-(10**90)), "-1" + 35 * "0" + "..."),
        (_with(id="first"), "first"),
    ],
)
def test_a_reject_holds_what_the_rule_found(tmp_path, line, value):
    _, reject = read_manifest(_write(tmp_path, _with(id="first"), line))
    assert reject.value == value


def test_the_first_of_two_songs_with_one_id_is_kept(tmp_path):
    first, second, third = read_manifest(_write(tmp_path, LINE, _with(genres="rock"), _with(id=1)))
    assert first.genres == "folk, female"
    assert (second.id, second.rule) == (third.id, third.rule) == ("1", "duplicate_id")


def test_a_missing_manifest_is_told_at_the_call(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="can't be read"):
        read_manifest(tmp_path)


def test_rejects_come_back(tmp_path):
    rejects = [Reject("1", "codes_range", "codes from -1", "m.jsonl: line 1"), Reject("\ud800", "r", "", "")]
    write_rejects(tmp_path / "rejects.parquet", rejects)
    assert read_rejects(tmp_path / "rejects.parquet") == [rejects[0], Reject("\\ud800", "r", "", "")]
    write_rejects(tmp_path / "none.parquet", [])
    assert read_rejects(tmp_path / "none.parquet") == []
    (tmp_path / "junk.parquet").write_text("junk")
    with pytest.raises(InputError, match="not a table of rejects"):
        read_rejects(tmp_path / "junk.parquet")


@pytest.mark.parametrize(
    ("text", "label", "lines"),
    [
        ("[verse]\nOne\n\n  Two \n", "verse", ["One", "Two"]),
        ("[pre chorus] One", "pre chorus", ["One"]),
        ("One\n[laughs]\n", "", ["One", "[laughs]"]),
        ("", "", []),
        ("[intro]\n\n", "intro", []),
    ],
)
def test_labels_and_lines_of_a_segment(text, label, lines):
    segment = Segment(text, 0, 1)
    assert (segment.label, segment.lines) == (label, lines)

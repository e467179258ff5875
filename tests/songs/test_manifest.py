import codecs
import gzip
import json
import unicodedata
from pathlib import Path

import pytest

from megatron_music.errors import InputError
from megatron_music.songs.manifest import place_of, read_manifest, write_manifest
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
        (_with(id=7.5), "wrong_type"),
        (_with(id=float(2**60)), "wrong_type"),
        (_with(id=float("nan")), "missing_id"),
        (_with(audio_length_in_sec="1_000"), "wrong_type"),
        (_with(audio_length_in_sec="nan"), "wrong_type"),
        (_with(audio_length_in_sec=True), "wrong_type"),
        (_with(msa="[{'start': 0}]"), "wrong_type"),
        (_with_segment(codec_frame_start=False), "wrong_type"),
        (_with_segment(codec_frame_end=1e400), "wrong_type"),
        (_with(codec=3), "wrong_type"),
        (_with(audio={"path": "x"}), "wrong_type"),
        (_with(audio_length_in_sec="0:12"), "wrong_type"),
        (_with(audio_length_in_sec=float("inf")), "wrong_type"),
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
        (_with_segment(codec_frame_start="0.5"), "wrong_type"),
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
    ("written", "read"),
    [
        ({"id": 7.0}, {"id": "7"}),
        ({"id": -0.0}, {"id": "0"}),
        ({"id": "7.0"}, {"id": "7.0"}),
        ({"id": 2**60}, {"id": str(2**60)}),
        ({"audio_length_in_sec": "12.5"}, {"duration_s": 12.5}),
        ({"audio_length_in_sec": " 1.25e1"}, {"duration_s": 12.5}),
        ({"audio_length_in_sec": float("nan")}, {"duration_s": None}),
        ({"audio_length_in_sec": ""}, {"duration_s": None}),
        ({"genres": float("nan"), "language": None}, {"genres": "", "language": None}),
        ({"msa": float("nan"), "splitted_lyrics": None}, {"structure": [], "segments": []}),
        ({"msa": "", "splitted_lyrics": ""}, {"structure": [], "segments": []}),
        ({"splitted_lyrics": {"segmented_lyrics": None}}, {"segments": []}),
        ({"codec": float("nan"), "vocals_codec": "", "instrumental_codec": None}, {"codes": {}}),
        ({"licence": float("nan"), "splitted_lyrics": None}, {"extra": {"licence": None}}),
        (
            {"msa": [{"start": "0", "end": "12.5", "label": "verse"}]},
            {"structure": [{"start": 0.0, "end": 12.5, "label": "verse"}]},
        ),
        (
            {"msa": json.dumps([{"start": 1, "end": 2, "label": "é"}])},
            {"structure": [{"start": 1, "end": 2, "label": "é"}]},
        ),
        (
            {"splitted_lyrics": json.dumps(LINE["splitted_lyrics"])},
            {"segments": [Segment("[verse]\nOne\nTwo\n\n", 0, 625, {"offset": 0, "duration": 12.5})]},
        ),
    ],
)  # fmt: skip
def test_values_as_other_programs_write_them(tmp_path, written, read):
    (song,) = read_manifest(_write(tmp_path, _with(**written)))
    assert {name: getattr(song, name) for name in read} == read


@pytest.mark.parametrize(("start", "end"), [(10.0, 625.0), ("10", "625"), ("10.0", 6.25e2), (1e1, "6.25E+2")])
def test_whole_numbers_of_frames_however_they_are_written(tmp_path, start, end):
    (song,) = read_manifest(_write(tmp_path, _with_segment(codec_frame_start=start, codec_frame_end=end)))
    frames = (song.segments[0].start_frame, song.segments[0].end_frame)
    assert frames == (10, 625) and all(type(frame) is int for frame in frames)


def test_what_pandas_makes_of_a_manifest_reads_as_the_same_songs(tmp_path):
    """A column with a gap becomes one of floats, and the gap NaN."""
    pandas = pytest.importorskip("pandas")
    lines = [_with(id=number, year=2000 + number) for number in range(3)]
    del lines[1]["year"], lines[1]["audio_length_in_sec"], lines[1]["msa"]
    songs = list(read_manifest(_write(tmp_path, *lines)))
    table = pandas.DataFrame(lines)
    table["id"] = table["id"].astype(float)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    table.to_json(tmp_path / "table.jsonl", orient="records", lines=True)
    for name in ("rows.jsonl", "table.jsonl"):
        read = list(read_manifest(tmp_path / name))
        assert [song.extra.pop("year") for song in read] == [2000.0, None, 2002.0]
        for song, before in zip(read, songs, strict=True):
            before.extra.pop("year", None)
            assert song == before
            before.extra["year"] = None


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,codec,genres\n1,a.npy,folk\n", "is a table of separated cells, not JSON lines; write"),
        (b"\xef\xbb\xbf\"codec\";\"id\"\r\n", "is a table of separated cells"),
        (b"PAR1\x15\x04", "is a Parquet table"),
        (gzip.compress(b'{"id": "1"}\n', mtime=0), "is compressed, not JSON lines; unpack it"),
        (b'[{"id": "1"},{"id": "2"}]', "is one JSON list"),
        (b'[\n  {"id": "1"}\n]\n', "is one JSON list"),
        (b'{\r\n  "id": "1"\r\n}\r\n', "is JSON over several lines, not JSON lines"),
        ('{"id": "1"}\n'.encode("utf-16"), "is UTF-16 text, not JSON lines; save it as UTF-8, or `iconv -f UTF-16"),
        (b'{"id": "1"}\r{"id": "2"}\r', "ends its lines with CR alone"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_manifest_is_told_in_one_line(tmp_path, content, message):
    (tmp_path / "songs.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "songs.jsonl")


def test_a_first_song_in_indonesian_is_no_heading_of_a_table(tmp_path):
    lines = [_with(genres="pop, id, live"), _with(id="2", languages=["en", "id", "ms"])]
    assert [song.genres for song in read_manifest(_write(tmp_path, *lines))] == ["pop, id, live", LINE["genres"]]
    assert isinstance(next(read_manifest(_write(tmp_path, lines[1]))), Song)


def test_marks_and_line_ends_of_joined_manifests(tmp_path):
    part = codecs.BOM_UTF8 + b'{"id": 1, "text": "a\\u2028\xe2\x80\xa8\xc2\x85b"}\r\n'
    path = tmp_path / "songs.jsonl"
    path.write_bytes(part + part.replace(b"1", b"2") + codecs.BOM_UTF8 + b"\r\n \n")
    assert [(song.id, song.text) for song in read_manifest(path)] == [(id, "a\u2028\u2028\x85b") for id in "12"]


def _named(folder: Path, manifest: str, *references: str) -> Path:
    path = folder / manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": name, "codec": name}) + "\n" for name in references))
    return path


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("manifest", "files", "folder"),
    [
        ("a/jsonl/m.jsonl", ["a/jsonl/codes/1.npy"], "a/jsonl"),
        ("a/jsonl/m.jsonl", ["codes/1.npy", "codes/2.npy", "a/jsonl/codes/2.npy"], "a/jsonl"),
        ("a/jsonl/m.jsonl", ["a/codes/1.npy", "a/codes/2.npy"], "a"),
        ("a/b/c/m.jsonl", ["codes/1.npy", "codes/2.npy"], "."),
        ("a/b/c/m.jsonl", ["codes/1.npy"], "a/b/c"),  # one of two by chance
        ("a/b/c/d/m.jsonl", ["codes/1.npy", "codes/2.npy"], "a/b/c/d"),  # too far above
        ("m.jsonl", ["here/codes/1.npy", "here/codes/2.npy"], "here"),
        ("m.jsonl", [], "."),
    ],
)
def test_the_folder_that_paths_are_relative_to(tmp_path, monkeypatch, manifest, files, folder):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = _named(tmp_path, manifest, "codes/1.npy", "codes/2.npy")
    _touch(*(tmp_path / file for file in files))
    assert {song.folder for song in read_manifest(path)} == {tmp_path / folder}
    assert place_of(path).folder == tmp_path / folder


def test_where_files_are_and_where_they_were_looked_for_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = _named(tmp_path, "a/b/m.jsonl", "codes/1.npy", "/absolute/2.npy")
    place_of(path).tell(path)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(
        f"{path}: codes/1.npy and other files that it names are in none of "
    )
    assert all(str(folder) in told for folder in (tmp_path / "a" / "b", tmp_path / "a", tmp_path, tmp_path.parent))
    _touch(tmp_path / "a" / "codes" / "1.npy")
    place_of(path).tell(path)
    assert f"relative to {tmp_path / 'a'}, where its files are" in capsys.readouterr().err
    _touch(tmp_path / "a" / "b" / "codes" / "1.npy")
    place_of(path).tell(path)
    assert capsys.readouterr().err == ""


def test_names_in_the_other_form_of_unicode_are_found(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "Été/Noël à Köln.npy") for form in ("NFC", "NFD"))
    for name, other in ((nfc, nfd), (nfd, nfc)):
        folder = tmp_path / str(len(name))
        _touch(folder / name)
        (song,) = read_manifest(_named(folder, "m.jsonl", other))
        assert song.codes_path("mix") == (folder / name, None) and song.codes == {"mix": other}
        assert Song("1", audio={"mix": other}, folder=folder).audio_path("mix") == folder / name
    missing = Song("1", audio={"mix": "Été.wav"}, folder=tmp_path)
    assert missing.audio_path("mix") == tmp_path / "Été.wav"

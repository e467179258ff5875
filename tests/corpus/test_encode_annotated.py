"""Annotators as steps of an encoding: what they find out reaches the manifest, once."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encode_cases import OPTIONS, contents, make_songs, read_lines, run_encode, write_lines

from megatron_music.audio.files import read_audio, write_audio
from megatron_music.corpus import encode_steps
from megatron_music.corpus.encode import encode_manifest, parse_annotator_options
from megatron_music.corpus.executors import Machines
from megatron_music.errors import InputError
from megatron_music.songs.codes import load_codes
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.rejects import read_rejects
from megatron_music.songs.song import Rejected, Segment, Song
from megatron_music.vocabulary.vocabulary import CodecRange

ALONE = Machines(workers=1)
CODES = CodecRange("embedded", "<embedded>", 0, 2, 16)


class Halves:
    """Writes a song's first half as its ``vocals``, notes the loudness, and labels the whole; song-3 it can't hear."""

    name = "separate"

    def __init__(self, heard: list[str]):
        self.heard = heard

    def annotate(self, song: Song, out: Path) -> Song:
        self.heard.append(song.id)
        if song.id == "song-3":
            raise Rejected("too_quiet", "nothing is heard", 0)
        if song.id == "song-4":
            raise KeyError("tempo")
        samples = read_audio(song.audio_path("mix"), 16_000)
        path = Path(out) / "stems" / f"{song.id}.flac"
        write_audio(path, samples[: len(samples) // 2], 16_000)
        return replace(
            song,
            audio=song.audio | {"vocals": str(path)},
            segments=[Segment("[verse]\nlo\n\n", 5, 50)],
            extra=song.extra | {"loudness": float(np.abs(samples).max())},
        )


class Counter:
    """Notes how often it has heard a song, from what it noted before."""

    name = "tempo"

    def __init__(self, options: Mapping[str, str]):
        self.times = int(options.get("times", 1))

    def annotate(self, song: Song, out: Path) -> Song:
        return replace(song, language="de", extra=song.extra | {"stems": len(song.audio), "times": self.times})


@pytest.fixture
def songs(tmp_path) -> Path:
    folder = make_songs(tmp_path / "songs")
    write_lines(folder, [{"id": line["id"], "audio": line["audio"], "genres": "folk"} for line in read_lines(folder)])
    return folder


@pytest.fixture
def heard(monkeypatch) -> list[str]:
    """Ids of the songs that the first annotator heard, in that order."""
    ids: list[str] = []
    encode_steps._annotator.cache_clear()
    monkeypatch.setattr(
        encode_steps,
        "load_annotator",
        lambda name, options, device: Halves(ids) if name == "separate" else Counter(options),
    )
    yield ids
    encode_steps._annotator.cache_clear()


def annotate(songs: Path, out: Path, **further: object) -> dict[str, int]:
    options = {"annotators": ["separate", "tempo"], "annotator_options": {"tempo": {"times": "7"}}, "machines": ALONE}
    return encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, **options | further)


def test_what_annotators_find_out_is_in_the_manifest(songs, heard, tmp_path):
    out = tmp_path / "codes"
    encoded = annotate(songs, out)
    assert (encoded.songs, sum(encoded.rejected.values()), encoded.shards) == (3, 2, 3)
    first, second, third = read_manifest(out / "manifest.jsonl")
    assert [first.id, second.id, third.id] == ["song-0", "song-1", "song-2"]
    samples = read_audio(songs / "0" / "mix.flac", 16_000)
    assert first.extra == {"loudness": float(np.abs(samples).max()), "stems": 2, "times": 7} and first.language == "de"
    assert first.genres == "folk" and first.segments == [Segment("[verse]\nlo\n\n", 5, 50)]
    assert first.codes["vocals"] == "codes-00000.parquet#song-0/vocals"
    assert load_codes(first, "vocals", CODES).shape == (2, 50) and load_codes(first, "mix", CODES).shape == (2, 100)
    rejects = {reject.id: reject for reject in read_rejects(out / "rejects.parquet")}
    assert (rejects["song-3"].rule, rejects["song-3"].value) == ("too_quiet", "0")
    assert rejects["song-4"].rule == "annotation_failed" and "separate: KeyError: 'tempo'" in rejects["song-4"].detail
    assert not list((out / ".encode").glob("*.separate.json"))


def test_a_song_is_annotated_once_until_it_changes(songs, heard, tmp_path):
    out = tmp_path / "codes"
    annotate(songs, out)
    assert heard == [f"song-{number}" for number in range(5)]
    straight = contents(out)
    annotate(songs, out, machines=Machines(workers=1, tasks=1))
    assert len(heard) == 5 and contents(out) == straight
    lines = read_lines(songs)
    lines[2]["genres"] = "waltz"
    write_lines(songs, lines)
    annotate(songs, out)
    assert heard[5:] == ["song-2", "song-3"]
    assert next(song for song in read_manifest(out / "manifest.jsonl") if song.id == "song-2").genres == "waltz"


def test_annotations_outlive_a_run_that_is_stopped_before_their_codes(songs, heard, tmp_path, monkeypatch):
    out, straight = tmp_path / "codes", tmp_path / "straight"
    annotate(songs, straight)
    heard.clear()

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encode_steps, "encode_tracks", stopped)
        annotate(songs, out)
    assert heard == ["song-0", "song-1"]
    annotate(songs, out)
    assert heard == [f"song-{number}" for number in range(5)]
    names = {name for name in contents(out) if not name.startswith((".encode", "stems"))}
    assert names == {name for name in contents(straight) if not name.startswith((".encode", "stems"))}
    for name in names - {"manifest.jsonl"}:
        assert (out / name).read_bytes() == (straight / name).read_bytes()


def test_a_folder_is_for_one_choice_of_annotators(songs, heard, tmp_path):
    annotate(songs, tmp_path / "codes")
    for other in ({"annotators": ["tempo", "separate"]}, {"annotator_options": {"tempo": {"times": "8"}}}):
        with pytest.raises(
            InputError, match="holds codes of another making: annotators is .*separate.*, not .*; remove"
        ):
            annotate(songs, tmp_path / "codes", **other)


def test_after_a_first_run_that_an_annotator_stopped_others_may_be_chosen(songs, tmp_path):
    """Without weights ``separate`` can't start; nothing is encoded yet, and the fitted codec stays."""
    with pytest.raises(InputError, match="separate.*weights"):
        encode_manifest(
            songs / "manifest.jsonl", tmp_path / "codes", **OPTIONS, annotators=["separate"], machines=ALONE
        )
    fitted = contents(tmp_path / "codes" / "codec")
    encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", **OPTIONS, annotators=["tempo"], machines=ALONE)
    assert contents(tmp_path / "codes" / "codec") == fitted
    assert json.loads((tmp_path / "codes" / "encoding.json").read_text())["annotators"] == [["tempo", {}]]
    assert read_lines(tmp_path / "codes")


@pytest.mark.parametrize(
    "annotators,options,line",
    [
        (["melody"], {}, "--annotate melody: is not known; name one of separate, structure"),
        (["tempo", "tempo"], {}, "--annotate tempo: is named twice"),
        (["tempo"], {"separate": {"weights": "x"}}, "--annotator-option separate: has options but is not named"),
    ],
)
def test_wrong_choices_of_annotators_are_refused(songs, tmp_path, annotators, options, line):
    with pytest.raises(InputError, match=line):
        annotate(songs, tmp_path / "codes", annotators=annotators, annotator_options=options)
    assert not (tmp_path / "codes").exists()


def test_options_of_annotators_are_read():
    options = parse_annotator_options(["separate.weights=a=b.th", "separate.shifts=2", "tempo.overwrite=true"])
    assert options == {"separate": {"weights": "a=b.th", "shifts": "2"}, "tempo": {"overwrite": "true"}}
    for wrong in ("separate", "separate.weights", "weights=x", ".x=1"):
        with pytest.raises(InputError, match=f"--annotator-option {wrong}: is no option of an annotator"):
            parse_annotator_options([wrong])


def test_the_annotators_of_the_project_run_as_processes(songs, tmp_path):
    out = tmp_path / "codes"
    done = run_encode(songs, out, "--workers=2", "--annotate=tempo", "--annotate=structure")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and all("codec" in line for line in lines)
    done = run_encode(songs, tmp_path / "stems", "--workers=2", "--annotate=separate")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: annotator separate: needs weights and none were named"
    )
    assert done.stderr.count("\n") == 1

"""Around the page of `demo`: its form, its pictures, its guard, and what keeps it from being served."""

import json
import socket
from importlib import util

import matplotlib.image
import numpy as np
import pytest

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.generation.demo import serve as server
from megatron_music.generation.demo.guard import names_address
from megatron_music.generation.demo.pictures import (
    Note,
    draw_piano_roll,
    draw_spectrogram,
    section_starts,
    sung_notes,
)
from megatron_music.generation.demo.song import Form, Visitors, make_song
from megatron_music.generation.request import Stopped
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.song import Models, Studio


@pytest.fixture
def models(make_model):
    seconds = np.arange(16000, dtype=np.float32) / 16000
    codec = EmbeddedCodec.fit([np.sin(900 * seconds * seconds).astype(np.float32)], codebooks=4, codebook_size=16)
    models = Models(make_model("one"), make_model("two", positions=128, seed=1))
    for folder in (models.stage1, models.stage2):
        codec.save(folder / "codec")
    return models


def song_of(models, form, songs, tags=None):
    reports = []
    report = lambda share, what: reports.append((share, what))  # noqa: E731
    with Visitors().watch("one") as watch:
        return make_song(Studio(models), form, songs, tags, watch, report), reports


def test_a_form_becomes_a_song_that_reports_its_way(models, tmp_path):
    lyrics = "[Verse 1]\nla (x2)\n[chorus]\nla\n[outro]\n"
    form = Form(
        lyrics, ("pop", "airy  vocal"), segments=2, settings=SamplingSettings(min_new_tokens=8, max_new_tokens=8)
    )
    song, reports = song_of(models, form, tmp_path / "songs", ["pop"])
    record = json.loads((song.folder / "song.json").read_text())
    assert (record["request"]["tags"], record["frames"], song.sections) == ("pop airy vocal", 8, 2)
    assert record["request"]["lyrics"] == ["[verse]\nla\n\n", "[chorus]\nla\n\n", "[outro]\n\n"]
    assert song.hints == [
        "lyrics: line 2: '(x2)' is left out; write what is sung again once more",
        *[f"tags: {tag!r} is not among the known ones" for tag in ("airy", "vocal")],
    ]
    assert [path.name for path in song.files] == ["mix.wav", "vocals.wav", "accompaniment.wav", "song.json"]
    assert reports[0] == (0.0, "reading the models")
    assert reports[1] == (1 / 16, "stage 1: section 1 of 2, 0.0 s sung")
    assert reports[16] == (1.0, "stage 1: section 2 of 2, 0.1 s sung")
    assert reports[17:] == [
        *[(frame / 8, f"stage 2: frame {frame} of 8") for frame in range(1, 8)],
        (1.0, "decoding"),
        (1.0, "drawing"),
    ]


def test_an_instrumental_song_has_no_notes_to_show(models, tmp_path):
    settings = SamplingSettings(min_new_tokens=8, max_new_tokens=8)
    form = Form("[verse]\nla\n", ("pop",), instrumental=True, settings=settings, file_format="flac")
    song, _ = song_of(models, form, tmp_path)
    assert ([path.name for path in song.files], song.piano_roll) == (["mix.flac", "song.json"], None)
    with pytest.raises(InputError, match="--format: 'exe' can't be written"):
        song_of(models, Form("[verse]\nla\n", ("pop",), file_format="exe"), tmp_path)


def test_errors_about_uploads_tell_no_folder(models, tmp_path):
    folder = tmp_path / "secret"
    paths = folder / "a.wav", folder / "b.wav"
    for path, seconds in zip(paths, (2, 4), strict=True):
        write_audio(path, np.random.default_rng(0).normal(size=seconds * 16000).astype(np.float32) * 0.1, 16000)
    form = Form("[verse]\nla\n", ("pop",), reference=paths)
    with pytest.raises(InputError) as caught:
        form.request(Studio(models))
    assert str(caught.value) == "b.wav: is not of one song with a.wav (2.0 s and 4.0 s); name two stems of one song"


def test_only_the_visitor_who_stops_is_stopped():
    visitors = Visitors()
    with visitors.watch("one") as one, visitors.watch("other") as other:
        visitors.stop("one")
        visitors.stop("nobody")
        with pytest.raises(Stopped):
            one.check()
        other.check()
        visitors.stop()
        assert other.stop.is_set()
    with visitors.watch("one") as again:
        again.check()


def test_notes_are_pitches_that_are_held():
    hz = {"a": 440.0, "b": 493.9, "-": np.nan}
    track = np.array([hz[frame] for frame in "--aaaa-bbb-bbbbba"])
    assert sung_notes(track) == [Note(69, 0.02, 0.06), Note(71, 0.11, 0.16)]
    assert sung_notes(np.full(50, np.nan)) == sung_notes(np.zeros(0)) == []


def test_pictures_show_sound_and_sections(tmp_path):
    seconds = np.arange(16000, dtype=np.float32) / 16000
    tone = np.sin(2 * np.pi * 2000 * seconds).astype(np.float32) * 0.3
    voice = np.sin(2 * np.pi * 220 * seconds).astype(np.float32) * 0.3
    sections = [(0.0, "[verse]"), (0.5, r"[$\frac$ " + "x" * 500 + "]")]  # a visitor's label is no formula
    assert draw_piano_roll(tmp_path / "roll.png", voice, 16000, sections)
    assert not draw_piano_roll(tmp_path / "none.png", np.zeros(16000, np.float32), 16000, sections)
    assert not (tmp_path / "none.png").exists()
    draw_spectrogram(tmp_path / "tone.png", tone, 16000, sections)
    picture = matplotlib.image.imread(tmp_path / "tone.png")
    assert matplotlib.image.imread(tmp_path / "roll.png").shape == picture.shape == (352, 990, 4)
    # The brightest row of a steady tone lies where its axis says 2 kHz: within the upper half of 0 to 8 kHz.
    rows = picture[60:300, 500, 0]
    assert 90 < 60 + int(rows.argmax()) < 200
    draw_spectrogram(tmp_path / "silence.png", np.zeros(10, np.float32), 16000)
    record = {"duration_s": 4.0, "frames": 200}
    segments = [{"text": "[verse]\nla\n\n", "start_frame": 0}, {"text": "[outro]\n\n", "start_frame": 150}]
    assert section_starts(record | {"segments": segments}) == [(0.0, "[verse]"), (3.0, "[outro]")]
    assert section_starts(record | {"segments": [{"text": "", "start_frame": 0}]}) == []
    assert section_starts(record | {"segments": [{"text": "la\n\n", "start_frame": 0}]}) == [(0.0, "")]


@pytest.mark.parametrize(
    "event, refused",
    [
        ({"data": [{"path": "/visitors/a.wav"}, None, "http://lyrics are text"]}, False),
        ({"data": [{"path": "http://example.com/a.wav"}]}, True),
        ({"data": [[{"more": {"path": "//example.com/a.wav"}}]]}, True),
        ({"data": [{"path": "file:///etc/passwd"}]}, True),
        ({"data": [{"path": ""}]}, True),
    ],
)
def test_events_that_name_files_elsewhere_are_seen(event, refused):
    assert names_address(json.dumps(event).encode()) == refused


def test_events_that_are_none_are_refused():
    assert all(names_address(body) for body in (b"", b"{", b"\xff", b"[" * 200_000))


def refused(where, what, **options):
    with pytest.raises(InputError) as caught:
        server.serve(**options)
    assert (caught.value.where, caught.value.what) == (where, what)


def test_what_keeps_the_page_from_being_served_is_one_line(models, tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = {"models": models, "folder": out, "port": 0}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(f"127.0.0.1:{port}", "can't be listened on (Address already in use)", **asked | {"port": port})
    refused("192.0.2.1:0", "can't be listened on (Cannot assign requested address)", **asked, host="192.0.2.1")
    refused(str(tmp_path / "tags"), "no such file", **asked, known_tags=tmp_path / "tags")
    refused(str(tmp_path), "exists and holds no demo.json", **asked | {"folder": tmp_path})
    refused("--stage2", "is missing", **asked | {"models": Models(models.stage1)})
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "gradio" else util.find_spec(name))
    refused("demo", "needs the package gradio", **asked)
    assert not out.exists()

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from scipy.signal import butter, sosfiltfilt

from megatron_music.errors import InputError
from megatron_music.songs.abc import read_abc
from megatron_music.songs.folder import manifest_of_folder
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.phones import PHONES
from megatron_music.songs.singing import SAMPLE_RATE, VOICES, lay_out, sing
from megatron_music.songs.song import Song
from megatron_music.songs.songbook import loudness_dbfs, render_songbook, segments_of, syllables_of
from megatron_music.songs.takes import frame_count, tags, take_plans, timeline_of


@pytest.fixture(scope="module")
def songbook(repository):
    return repository / "examples" / "songbook"


@pytest.fixture(scope="module")
def small_book(songbook, tmp_path_factory):
    """Two short songs of the book."""
    folder = tmp_path_factory.mktemp("book")
    for name in ("yankee_doodle", "frere_jacques"):
        (folder / f"{name}.abc").write_text((songbook / f"{name}.abc").read_text())
    return folder


@pytest.fixture(scope="module")
def rendered(small_book, tmp_path_factory):
    out = tmp_path_factory.mktemp("rendered")
    render_songbook(small_book, out, takes=2, processes=1)
    return out


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fundamental_hz(samples):
    """YIN (de Cheveigne and Kawahara 2002): the first deep dip of the normalised difference function."""
    longest = 260
    count = len(samples) - longest
    difference = np.array([np.sum((samples[:count] - samples[lag : lag + count]) ** 2) for lag in range(longest)])
    normal = difference[1:] * np.arange(1, longest) / np.maximum(np.cumsum(difference[1:]), 1e-12)
    deep = next((k for k in range(15, longest - 2) if normal[k] < 0.2), int(np.argmin(normal[15:]) + 15))
    while normal[deep + 1] < normal[deep]:
        deep += 1
    before, at, after = normal[deep - 1 : deep + 2]
    return SAMPLE_RATE / (deep + 1 + 0.5 * (before - after) / (before - 2 * at + after))


def test_at_least_sixteen_songs_ship(songbook):
    songs = [read_abc(path) for path in sorted(songbook.glob("*.abc"))]
    assert len(songs) >= 16
    assert {"en", "fr", "de"} <= {song.fields["language"] for song in songs}
    for song in songs:
        seconds = float(song.length) * 60 / song.tempo
        assert 28 <= seconds <= 62, song.path
        assert len(song.sections) >= 2
        assert all(section.lines for section in song.sections)


def test_every_note_of_every_song_is_sung_at_its_pitch(songbook):
    for path in sorted(songbook.glob("*.abc")):
        song = read_abc(path)
        take = take_plans(song, 1, 0)[0]
        timeline = timeline_of(song, take)
        syllables = syllables_of(song, take, timeline)
        vowels = {s.syllable: s for s in lay_out(syllables) if PHONES[s.phone].kind == "vowel"}
        # High harmonics would need lags between whole samples.
        low_pass = butter(4, 1500, fs=SAMPLE_RATE, output="sos")
        vocals = sosfiltfilt(low_pass, sing(syllables, VOICES[take.singer], frame_count(timeline)).astype(float))
        measured = 0
        for index, syllable in enumerate(syllables):
            for note in syllable.notes:
                end = min(note.end, vowels[index].end)
                if end - note.start < 4:
                    continue
                middle, half = (note.start + end) * 160, min(800, (end - note.start - 2) * 160)
                f0_hz = fundamental_hz(vocals[middle - half : middle + half])
                cents = 1200 * np.log2(f0_hz / 440) - 100 * (note.pitch - 69)
                assert abs(cents) < 50, (path.stem, syllable, note, f0_hz)
                measured += 1
        assert measured >= 0.9 * sum(len(syllable.notes) for syllable in syllables)


def test_the_manifest_tells_the_songs(songbook, rendered):
    songs = list(read_manifest(rendered / "manifest.jsonl"))
    assert [song.id for song in songs] == [
        "frere_jacques.t0",
        "frere_jacques.t1",
        "yankee_doodle.t0",
        "yankee_doodle.t1",
    ]
    for song in songs:
        assert isinstance(song, Song)
        written = read_abc(songbook / f"{song.id.split('.')[0]}.abc")
        sung = [segment for segment in song.segments if segment.label != "intro"]
        assert [segment.label for segment in sung] == [section.label for section in written.sections]
        assert [segment.lines for segment in sung] == [[line.text for line in s.lines] for s in written.sections]
        assert all(s.text == f"[{s.label}]\n" + "".join(f"{line}\n" for line in s.lines) + "\n" for s in song.segments)
        for track in ("mix", "vocals", "accompaniment"):
            info = soundfile.info(song.audio_path(track))
            assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
            assert info.frames == song.segments[-1].end_frame * 320 == round(song.duration_s * 16000)
        assert song.language == written.fields["language"] and song.extra["licence"] == "public domain"
    row = json.loads((rendered / "manifest.jsonl").read_text().splitlines()[0])
    first = row["splitted_lyrics"]["segmented_lyrics"][0]
    assert row["audio"] == "frere_jacques.t0/mix.flac" and first["offset"] == 0.0
    assert first["duration"] == pytest.approx(first["codec_frame_end"] / 50)


def test_segments_tile_every_take_and_lines_lie_in_them(songbook):
    for path in sorted(songbook.glob("*.abc")):
        song = read_abc(path)
        for take in take_plans(song, 4, 1):
            segments, lines = segments_of(song, take)
            assert segments[0].start_frame == 0
            assert segments[-1].end_frame == frame_count(timeline_of(song, take))
            for before, after in zip(segments, segments[1:], strict=False):
                assert before.end_frame == after.start_frame
            for segment, sung in zip(segments, lines, strict=True):
                assert segment.end_frame - segment.start_frame >= 50
                times = [time for line in sung for time in (line.start, line.end)]
                assert times == sorted(times)
                assert not times or segment.start_frame <= times[0] and times[-1] <= segment.end_frame


def test_stems_add_up_and_are_neither_quiet_nor_clipped(rendered):
    for song in read_manifest(rendered / "manifest.jsonl"):
        mix, vocals, accompaniment = (
            soundfile.read(song.audio_path(track))[0] for track in ("mix", "vocals", "accompaniment")
        )
        assert np.abs(vocals + accompaniment - mix).max() <= 2 / 32768
        assert np.abs(mix).max() < 0.99
        assert loudness_dbfs(vocals) == pytest.approx(-20.7, abs=1.0)
        assert loudness_dbfs(accompaniment) == pytest.approx(-24, abs=1.0)


def test_the_same_bytes_whatever_the_number_of_processes(small_book, rendered, tmp_path):
    render_songbook(small_book, tmp_path, takes=2, processes=2)
    assert digests(tmp_path) == digests(rendered)


def test_only_what_is_missing_or_changed_is_rendered(small_book, rendered):
    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*.flac")}
    (rendered / "yankee_doodle.t1" / "vocals.flac").unlink()
    damaged = rendered / "frere_jacques.t1" / "recording.json"
    damaged.write_text("{}")
    digest = digests(rendered / "yankee_doodle.t0")
    assert render_songbook(small_book, rendered, takes=2, processes=1).endswith(" hours, 2 of them made now")
    after = {path: path.stat().st_mtime_ns for path in rendered.rglob("*.flac")}
    rendered_again = {path.parent.name for path in after if after[path] != before.get(path)}
    assert rendered_again == {"yankee_doodle.t1", "frere_jacques.t1"}
    assert digests(rendered / "yankee_doodle.t0") == digest


def test_what_is_sung_lies_beside_the_sound(small_book, rendered, tmp_path):
    """By which a folder of recordings is read; also where it was rendered before there was such a file."""
    (rendered / "yankee_doodle.t1" / "song.json").unlink()
    sound = (rendered / "yankee_doodle.t1" / "mix.flac").stat().st_mtime_ns
    render_songbook(small_book, rendered, takes=2, processes=1)
    assert (rendered / "yankee_doodle.t1" / "mix.flac").stat().st_mtime_ns == sound
    manifest_of_folder(rendered, tmp_path)
    own, found = (list(read_manifest(folder / "manifest.jsonl")) for folder in (rendered, tmp_path))
    assert len(own) == 4
    for song, again in zip(sorted(own, key=lambda song: song.id), found, strict=True):
        assert replace(again, folder=song.folder, audio=song.audio, extra=song.extra) == song
        assert all(again.audio_path(track).samefile(song.audio_path(track)) for track in song.audio)
        assert again.extra["lines"] == song.extra["lines"]


def test_takes_differ_and_their_tags_are_true(songbook):
    song = read_abc(songbook / "oh_susanna.abc")
    plans = take_plans(song, 6, 0)
    assert tags(song, plans[0]) == "uplifting male country folk bright vocal banjo bass drums"
    assert (plans[0].transposition, plans[0].quarters_per_minute) == (0, song.tempo)
    assert plans == take_plans(song, 6, 0) and plans[1:] != take_plans(song, 6, 1)[1:]
    assert len({(p.singer, p.transposition, p.quarters_per_minute, tuple(p.instruments)) for p in plans}) == 6
    assert {p.singer for p in plans} == set(VOICES)
    for plan in plans[1:]:
        voice = VOICES[plan.singer]
        pitches = [note.pitch + plan.transposition + voice.octave for note in song.notes]
        assert voice.lowest <= min(pitches) and max(pitches) <= voice.highest
        words = tags(song, plan)
        assert f" {plan.singer} " in words and f"{plan.timbre} vocal" in words
        assert words.endswith(" ".join(plan.instruments))
        assert 0.9 <= plan.quarters_per_minute / song.tempo <= 1.1


def test_bad_books_are_told_in_one_line(songbook, tmp_path):
    with pytest.raises(InputError, match="holds no .abc files"):
        render_songbook(tmp_path, tmp_path / "out")
    text = (songbook / "oh_susanna.abc").read_text()
    for old, new, message in (
        ("%%voice male", "%%voice alien", "song.abc: line 12: %%voice 'alien bright' is not known"),
        ("banjo, bass", "theremin, bass", "song.abc: line 13: instrument 'theremin' is not known"),
        ('"C"c2', '"Q"c2', "song.abc: line 25: chord 'Q' is not known"),
        ("%%language en", "%%language xx", "song.abc: line 9: language 'xx'"),
    ):
        (tmp_path / "song.abc").write_text(text.replace(old, new))
        with pytest.raises(InputError) as caught:
            render_songbook(tmp_path, tmp_path / "out")
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()

"""Vocal range and notes: f0 files, made tones, and a stem of the songbook whose score is known."""

import numpy as np
import pytest

from megatron_music.errors import InputError
from megatron_music.evaluation.songs import voice
from megatron_music.evaluation.songs.voice import Note, f0_of_audio, notes, read_f0, voice_measures
from megatron_music.songs.abc import read_abc
from megatron_music.songs.songbook import stems, syllables_of
from megatron_music.songs.takes import take_plans, timeline_of

RATE = 16_000


def hertz(semitone: float) -> float:
    return 440.0 * 2 ** ((semitone - 69) / 12)


def tone(semitone: float, seconds: float) -> np.ndarray:
    """Eight harmonics, faded over 5 ms at both ends."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    orders = [order for order in range(1, 9) if order * hertz(semitone) < RATE / 2]
    samples = 0.2 * sum(np.sin(2 * np.pi * order * hertz(semitone) * time_s) / order for order in orders)
    return (samples * np.minimum(1, np.minimum(time_s, time_s[::-1]) / 0.005)).astype(np.float32)


def held(*lengths: tuple[float, int]) -> np.ndarray:
    """f0 values: (MIDI number, or 0, and how many times)."""
    return np.concatenate([np.full(count, hertz(semitone) if semitone else 0.0) for semitone, count in lengths])


def test_three_equal_frames_are_no_note_and_four_are():
    f0_hz = held((60, 10), (72, 3), (60, 10), (55, 4))
    assert notes(f0_hz) == [Note(0, 10, 60), Note(13, 23, 60), Note(23, 27, 55)]
    assert voice_measures(f0_hz)["vocal_range"] == 5.0
    assert voice_measures(held((60, 10), (72, 4)))["vocal_range"] == 12.0
    assert voice_measures(held((60, 3), (0, 1), (60, 3))) == {"voiced_share": pytest.approx(600 / 7)}


def test_frames_are_equal_where_they_round_to_one_semitone():
    assert notes(held((59.51, 2), (60.49, 2))) == [Note(0, 4, 60)]
    assert notes(held((60.4, 2), (60.6, 2))) == []
    # The edge itself goes up, whichever its number.
    assert notes(held((60.5 + 1e-9, 4))) == [Note(0, 4, 61)] and notes(held((61.5 + 1e-9, 4))) == [Note(0, 4, 62)]


def test_the_statistics_of_notes():
    measures = voice_measures(held((60, 50), (0, 25), (64, 30), (60, 20), (67, 75)))
    assert measures == {
        "voiced_share": 87.5,
        "vocal_range": 7.0,
        "lowest_note": 60.0,
        "highest_note": 67.0,
        "distinct_notes": 3.0,
        "notes_per_second": 2.0,
        "note_length": 0.4,
    }
    assert voice_measures(np.zeros(100)) == {"voiced_share": 0.0} and voice_measures(np.zeros(0)) == {}


def test_f0_files(tmp_path):
    path = tmp_path / "a.f0"
    path.write_text("440\n0\nnan\n 220.5 \n-1\n\n")
    assert np.array_equal(read_f0(path), [440, np.nan, np.nan, 220.5, np.nan], equal_nan=True)
    for text, message in (
        ("440\nhigh\n", "a.f0: line 2: 'high' is not one number; write one value in Hz a line, 100 a second"),
        ("0.0 440\n", "line 1: '0.0 440' is not one number"),
        ("440\n\n440\n", "line 2: '' is not one number"),
        ("440\ninf\n", "line 2: is infinite"),
        ("\n", "holds no f0 values"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_f0(path)


@pytest.mark.parametrize("low", [36, 45, 57, 69])
def test_the_range_of_tones_and_their_notes_of_100_ms(low):
    """Held tones with a short one above and one below them, a silence between, and joined."""
    pause = np.zeros(1600, np.float32)
    apart = [tone(low + 5, 0.3), pause, tone(low + 13, 0.1), pause, tone(low + 5, 0.3), pause, tone(low, 0.1), pause]
    assert voice_measures(f0_of_audio(np.concatenate(apart)))["vocal_range"] == 13.0
    joined = [tone(low + 7, 0.3), tone(low + 12, 0.1), tone(low + 7, 0.3), tone(low, 0.1), tone(low + 7, 0.2)]
    measures = voice_measures(f0_of_audio(np.concatenate(joined)))
    assert (measures["lowest_note"], measures["highest_note"]) == (low, low + 12)


@pytest.mark.parametrize("name", ["frere_jacques", "ode_an_die_freude", "mo_li_hua"])
def test_the_range_of_a_sung_song(repository, name):
    song = read_abc(repository / "examples" / "songbook" / f"{name}.abc")
    take = take_plans(song, 1, 0)[0]
    vocals = stems(song, take)["vocals"][: 12 * RATE]
    sung = [
        note.pitch
        for syllable in syllables_of(song, take, timeline_of(song, take))
        for note in syllable.notes
        if note.end * 320 <= len(vocals)
    ]
    measures = voice_measures(f0_of_audio(vocals))
    assert (measures["lowest_note"], measures["highest_note"]) == (min(sung), max(sung))
    assert measures["distinct_notes"] == len(set(sung))


def test_pieces_join_without_a_seam(monkeypatch):
    melody = np.concatenate([tone(semitone, 0.4) for semitone in (60, 64, 67, 60, 65)])
    whole = f0_of_audio(melody)
    monkeypatch.setattr(voice, "PIECE_S", 0.5)
    pieces = f0_of_audio(melody)
    assert len(whole) == len(pieces) == 200
    assert [note.semitone for note in notes(pieces)] == [note.semitone for note in notes(whole)] == [60, 64, 67, 60, 65]


def test_silence_noise_and_nothing_have_no_notes():
    noise = np.random.default_rng(0).normal(0, 0.003, RATE).astype(np.float32)
    assert notes(f0_of_audio(noise)) == []
    assert np.isnan(f0_of_audio(np.zeros(RATE, np.float32))).all()
    assert len(f0_of_audio(np.zeros(0, np.float32))) == 0 and len(f0_of_audio(np.ones(2, np.float32))) == 1

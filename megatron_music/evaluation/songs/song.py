"""One song, measured: whatever can be, and in words what could not be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.evaluation.kept import kept_json
from megatron_music.evaluation.songs.form import chorus_return, repetition
from megatron_music.evaluation.songs.harmony import key_measures, tempo_measures
from megatron_music.evaluation.songs.inputs import F0, Prompt, SongFiles, read_prompt
from megatron_music.evaluation.songs.sound import Recording, hear, sound_measures, vocal_to_accompaniment_db
from megatron_music.evaluation.songs.voice import f0_of_audio, read_f0, voice_measures
from megatron_music.songs.annotators.structure import SILENT_DB, block_features

T = TypeVar("T")
_UNEVEN_S = 1.0
"""Stems of one song whose lengths differ by more belong to different songs, or one is cut."""


@dataclass
class Found:
    """What was found out about a song; the fields of a ``SongResult``."""

    measures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """What ``work`` gives; where it fails, None and a problem: no file may end the evaluation of all others."""
        try:
            return work()
        except InputError as error:
            self.problems.append(f"{what}: {error.what}" + (f"; {error.mend}" if error.mend else ""))
        except Exception as error:
            self.problems.append(f"{what}: {type(error).__name__}: {error}")
        return None

    def add_voice(self, what: str, f0_hz: np.ndarray) -> None:
        """Adds the measures of f0 values, 100 a second."""
        measures = voice_measures(f0_hz)
        self.measures |= measures
        if "vocal_range" not in measures:
            self.problems.append(f"{what}: no note is held for 40 ms")


@dataclass(frozen=True)
class Job:
    """A song to be measured, the file that keeps what was found, and whether pyin hears the vocals."""

    song: SongFiles
    kept: Path
    pyin: bool = True

    @classmethod
    def of(cls, song: SongFiles, store: Path, pyin: bool = True) -> "Job":
        """The file's name changes with the song's files, with ``pyin`` and with the programs that measure."""
        return cls(song, store / f"{fingerprint.of_value([song.stamps(), _programs(), pyin])}.json", pyin)


def measure(job: Job) -> Found:
    """Measures a song, or reads what was kept of it; runs in a worker process."""
    return Found(**kept_json(job.kept, lambda: vars(measured(job.song, job.pyin))))


def measured(song: SongFiles, pyin: bool = True) -> Found:
    """All measures that need no network; without ``pyin`` those of the voice of an f0 file only."""
    found = Found(problems=list(song.problems))
    recordings = {
        track: recording
        for track, path in song.tracks.items()
        if track != F0 and (recording := found.attempt(track, lambda path=path: hear(path)))
    }
    _voice(song, recordings, pyin, found)
    _levels(recordings, found)
    heard = next((recordings[track] for track in ("mix", "vocals", "accompaniment") if track in recordings), None)
    if heard:
        measures, silent = sound_measures(heard)
        prompt, unread = read_prompt(song, heard.duration_s)
        found.measures |= measures
        found.problems += silent + unread
        if heard.energy / heard.duration_s > 10 ** (SILENT_DB / 10):
            _music(heard, prompt, found)
    return found


def _voice(song: SongFiles, recordings: dict[str, Recording], pyin: bool, found: Found) -> None:
    if F0 in song.tracks:
        what, f0_hz = "f0", found.attempt("f0", lambda: read_f0(song.tracks[F0]))
    elif pyin and "vocals" in recordings:
        vocals = recordings["vocals"].samples
        what, f0_hz = "vocals", found.attempt("vocals", lambda: f0_of_audio(vocals))
    else:
        return
    if f0_hz is not None:
        found.add_voice(what, f0_hz)


def _levels(recordings: dict[str, Recording], found: Found) -> None:
    if not {"vocals", "accompaniment"} <= recordings.keys():
        return
    vocals, accompaniment = recordings["vocals"], recordings["accompaniment"]
    ratio_db = vocal_to_accompaniment_db(vocals, accompaniment)
    if ratio_db is None:
        found.problems.append("vocals or accompaniment are silent: there is no ratio of them")
    else:
        found.measures["vocal_to_accompaniment"] = ratio_db
    if abs(vocals.duration_s - accompaniment.duration_s) > _UNEVEN_S:
        lengths = f"vocals last {vocals.duration_s:.1f} s and the accompaniment {accompaniment.duration_s:.1f} s"
        found.problems.append(lengths)


def _music(heard: Recording, prompt: Prompt, found: Found) -> None:
    """What needs some seconds of sound."""
    tempo = found.attempt("tempo", lambda: tempo_measures(heard.samples))
    if tempo is not None:
        found.measures |= tempo
        if not tempo:
            found.problems.append("no beat was found")
    features = found.attempt("harmony", lambda: block_features(heard.samples))
    if features is None:
        return
    measures, key = key_measures(features)
    found.measures |= measures
    found.details["key"] = key
    if structure := found.attempt("structure", lambda: repetition(features)):
        found.measures |= structure[0]
        found.details["sections"] = structure[1]
        if not structure[0]:
            found.problems.append("is shorter than 16 s: its structure is not looked at")
    returned = found.attempt("chorus", lambda: chorus_return(features, prompt.sections))
    if returned is not None:
        found.measures["chorus_return"] = returned


@cache
def _programs() -> dict[str, str]:
    """Fingerprints of the files whose text decides what is measured, and librosa's version, none where it is missing:
    songs are measured again once it is installed."""
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in ("song", "voice", "sound", "harmony", "form", "inputs")]
    package = here.parents[1]
    files += [package / "songs" / "annotators" / f"{name}.py" for name in ("structure", "tempo")]
    files += [package / "songs" / f"{name}.py" for name in ("folder", "lyrics")]
    files += [package / "audio" / f"{name}.py" for name in ("files", "loudness", "spectrum")]
    try:
        librosa = version("librosa")
    except PackageNotFoundError:
        librosa = ""
    return {str(file.relative_to(package)): fingerprint.of_file(file) for file in files} | {"librosa": librosa}

"""Writing a report: a folder that stands on its own, with the page, its tables, the songs to hear and the JSON."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_music.audio.files import audio_info
from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.errors import InputError
from megatron_music.evaluation.listening.statistics import AgainstListeners, correlate
from megatron_music.evaluation.report.plots import listener_radar, losses, losses_of, score_radar, violin, win_matrix
from megatron_music.evaluation.report.tables import (
    correlation_words,
    heading,
    latex,
    main_aspect,
    measure_rows,
    measures_csv,
    number,
    songs_csv,
)
from megatron_music.evaluation.result import AUTOMATIC, FILE, Evaluation, SongResult, SystemResult, merge
from megatron_music.files import atomic_path
from megatron_music.pages import render
from megatron_music.progress import track

PAGE, SONGS = "report.html", "songs"
PLAYERS = 20
VOCAL_RANGE = "vocal_range"
MOST_PROBLEMS = 200
"""Rows of problems on the page; ``songs.csv`` has all."""
MOST_MODEL = 50_000
"""Characters of what was found of a model; ``evaluation.json`` has all."""
PLAYED = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"})
_TEMPLATE = Path(__file__).parent / "page" / "report.html"


@dataclass(frozen=True)
class Player:
    """A song to hear: its file beside the page, or why there is none."""

    address: str
    silence: str
    vocal_range: float | None


def report_files(paths: Sequence[str | Path], out: str | Path, players: int = PLAYERS) -> Path:
    """Reads evaluations, one or several, and writes their report; see ``merge`` and ``write_report``."""
    return write_report(merge(paths), out, players)


def write_report(evaluation: Evaluation, out: str | Path, players: int = PLAYERS) -> Path:
    """Writes ``out``, whole or not at all, and returns the path of its page.

    The folder holds ``report.html``, ``evaluation.json`` (which `evaluate` reads again), ``measures.csv``,
    ``songs.csv``, ``measures.tex`` and in ``songs`` copies of those that the page plays, so that it can be moved.

    Args:
        players: songs of each system to hear, at most; those that most systems have come first.

    Raises:
        InputError: there is nothing to report, or ``out`` holds other things than an earlier report.
    """
    out = Path(out)
    if not evaluation.systems and evaluation.listening is None:
        raise InputError(out, "there are no systems to report", "evaluate some songs or a model first")
    refuse_foreign_folder(out, PAGE)
    with atomic_path(out) as folder:
        folder.mkdir()
        heard = _copy_songs(evaluation, folder, players)
        evaluation.write(folder / FILE)
        texts = {
            "measures.csv": measures_csv(evaluation),
            "songs.csv": songs_csv(evaluation),
            "measures.tex": latex(evaluation),
            PAGE: _page(evaluation, heard, out.resolve().name),
        }
        for name, text in texts.items():
            # As bytes: CSV has its own line ends.
            (folder / name).write_bytes(text.encode())
    return out / PAGE


def _copy_songs(evaluation: Evaluation, folder: Path, players: int) -> dict[str, dict[str, Player]]:
    """Copies songs into ``folder``; players by the song's name and the system's."""
    systems = Counter(song.name for system in evaluation.systems for song in system.songs)
    # A counter keeps the order of what is equally frequent.
    ranks = {name: rank for rank, (name, _) in enumerate(systems.most_common())}
    heard: dict[str, dict[str, Player]] = {}
    for place, system in enumerate(evaluation.systems, 1):
        chosen = sorted(system.songs, key=lambda song: ranks[song.name])[:players]
        for at, song in enumerate(track(chosen, f"copying songs of {system.name}"), 1):
            name = f"{SONGS}/{place:02d}-{_file_name(system.name)}/{at:03d}-{_file_name(song.name)}"
            heard.setdefault(song.name, {})[system.name] = _player(system, song, folder, name)
    return dict(sorted(heard.items(), key=lambda item: ranks[item[0]]))


def _player(system: SystemResult, song: SongResult, folder: Path, name: str) -> Player:
    path = Path(system.folder) / song.file
    found = song.measures.get(VOCAL_RANGE)
    if not song.file or path.suffix.lower() not in PLAYED:
        return Player("", "no audio", found)
    try:
        audio_info(path)
    except InputError:
        return Player("", f"no audio in {song.file}" if path.is_file() else f"{path} is not there any more", found)
    name += path.suffix.lower()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / name)
    return Player(name, "", found)


def _file_name(name: str) -> str:
    """What every file system and address takes as it is."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "song"


def _page(evaluation: Evaluation, heard: dict[str, dict[str, Player]], name: str) -> str:
    listening, aspect = evaluation.listening, main_aspect(evaluation)
    rows = measure_rows(evaluation)
    of_songs = [row.name for row in rows if any(cell.songs for cell in row.cells.values())]
    others = [violin(evaluation, measure) for measure in of_songs if measure != VOCAL_RANGE]
    matrices = [win_matrix(listening, one) for one in listening.aspects] if listening else []
    radars = [listener_radar(listening) if listening else None, score_radar(evaluation)]
    problems = [(system.name, song.name, told) for system in evaluation.systems for song in system.songs
                for told in song.problems]  # fmt: skip
    return render(
        _TEMPLATE,
        filters={"number": number, "heading": heading, "correlation": correlation_words},
        name=name,
        evaluation=evaluation,
        systems=[system.name for system in evaluation.systems],
        song_count=sum(len(system.songs) for system in evaluation.systems),
        automatic=AUTOMATIC,
        unknown=[one for one in listening.systems if evaluation.system(one) is None] if listening and rows else [],
        rows=rows,
        aspect=aspect,
        vocal_range=violin(evaluation, VOCAL_RANGE) if VOCAL_RANGE in of_songs else None,
        violins=others,
        matrices=[plot for plot in matrices if plot],
        radars=[plot for plot in radars if plot],
        losses=losses(evaluation),
        losses_by_system={system.name: losses_of(system) for system in evaluation.systems if losses_of(system)},
        models={
            system.name: json.dumps(system.model, indent=1, ensure_ascii=False)[:MOST_MODEL]
            for system in evaluation.systems
            if system.model
        },
        against=_against(evaluation),
        heard=heard,
        problems=problems[:MOST_PROBLEMS],
        more_problems=max(len(problems) - MOST_PROBLEMS, 0),
    )


def _against(evaluation: Evaluation) -> dict[str, dict[str, AgainstListeners]]:
    """How each measure goes along with each aspect."""
    aspects = evaluation.listening.aspects if evaluation.listening else []
    found = {
        measure: {aspect: correlate(evaluation, measure, aspect) for aspect in aspects}
        for measure in evaluation.measures
    }
    return {
        measure: {aspect: one for aspect, one in by_aspect.items() if one is not None}
        for measure, by_aspect in found.items()
        if any(one is not None and (one.system_count or one.pair_count) for one in by_aspect.values())
    }

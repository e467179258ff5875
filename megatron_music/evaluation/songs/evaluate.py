"""Several systems' songs side by side: every song measured, what each network hears kept, one file of all."""

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.evaluation.report.tables import heading, measure_rows
from megatron_music.evaluation.report.write import write_report
from megatron_music.evaluation.result import AUTOMATIC, FILE, Evaluation, Missing, SongResult, SystemResult
from megatron_music.evaluation.songs import measures as _registered  # noqa: F401
from megatron_music.evaluation.songs.inputs import F0, SongFiles, songs_in
from megatron_music.evaluation.songs.networks import Named, Networks
from megatron_music.evaluation.songs.scores import read_scores
from megatron_music.evaluation.songs.song import Found, Job, measure
from megatron_music.files import make_folder
from megatron_music.parallel import Workers
from megatron_music.progress import track
from megatron_music.tables import table

STORE, REPORT = ".songs", "report"
_SHOWN_PROBLEMS = 20
_SEPARATE = "separate the songs (`encode --annotate separate`), or put the vocal's f0 beside them (song.f0, in Hz)"
_SCORES = "give its scores with --scores FILE.csv: columns system, song"


@dataclass(frozen=True)
class Options:
    """How songs are measured.

    Attributes:
        plain: the track that audio files hold whose names tell none, ``mix`` or ``vocals``.
        named: the networks that hear the songs, and what they need.
        scores: a CSV file of scores by other programs, see ``read_scores``.
        processes: how many songs are measured at once; all cores where None.
    """

    plain: str = "mix"
    named: Named = field(default_factory=Named)
    scores: Path | None = None
    processes: int | None = None


def evaluate_songs(folders: Sequence[str | Path], out: str | Path, options: Options | None = None) -> Evaluation:
    """Measures the songs of each folder, a system, and writes ``out/evaluation.json`` and ``out/report``.

    No song stops the others: what could not be measured stands among its problems. Songs that were measured are known
    again by their files, so that a run that was killed goes on and one with more songs measures those alone. One that
    kills its worker is tried again by the next run, which may have more memory.

    Raises:
        InputError: before anything is measured, where a folder holds no songs, an option can't be used or ``out`` is
            another thing.
    """
    options, out = options or Options(), Path(out)
    systems = {name: songs_in(folder, options.plain) for name, folder in _names(folders).items()}
    reference = songs_in(options.named.reference, options.plain) if options.named.reference else []
    scores = read_scores(options.scores) if options.scores else {}
    for system, song in scores:
        if song not in [one.name for one in systems.get(system, [])]:
            mend = f"systems are {', '.join(systems)}; a song's name is its path there without suffix"
            raise InputError(f"{options.scores}", f"has a song {song!r} of {system!r}, which there is not", mend)
    store = _store(out, [*folders, *filter(None, [options.named.reference])])
    networks = Networks(options.named, reference, store)
    pyin = options.named.rmvpe is None
    jobs = {name: [Job.of(song, store, pyin) for song in songs] for name, songs in systems.items()}
    found = dict(zip(systems, _measured(list(jobs.values()), options.processes), strict=True))
    results, missing = [], [*_packages(options.named), *networks.missing(), *_other_programs(scores)]
    for name, songs in systems.items():
        for song, one in track(list(zip(songs, found[name], strict=True)), f"hearing {name}"):
            networks.hear_song(song, one)
            one.measures |= scores.get((name, song.name), {})
        distances, why = networks.distances(songs)
        missing += [*why, *_lacking(name, songs, found[name])]
        results.append(_system(name, songs, found[name], distances))
    evaluation = Evaluation.of(results, missing)
    evaluation.write(out / FILE)
    write_report(evaluation, out / REPORT)
    return evaluation


def summary(evaluation: Evaluation) -> str:
    """Medians and quartiles by system, what is missing and the first problems, for a terminal."""
    names = [system.name for system in evaluation.systems]
    rows = [["", *names], ["songs", *(str(len(system.songs)) for system in evaluation.systems)]]
    for row in measure_rows(evaluation):
        cells = [row.cells[name].words if name in row.cells else "-" for name in names]
        rows.append([heading(row.measure), *cells])
    lines = [table(rows), "median [quartiles] of songs", AUTOMATIC]
    lines += evaluation.missing_in_words()
    problems = [
        f"{system.name}/{song.name}: {text}"
        for system in evaluation.systems
        for song in system.songs
        for text in song.problems
    ]
    if problems:
        lines += [f"problems: {len(problems)}", *(f"  {line}" for line in problems[:_SHOWN_PROBLEMS])]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"  ... all of them are in {FILE}")
    return "\n".join(lines)


def refuse_unreadable(evaluation: Evaluation) -> None:
    """Raises InputError for the first system of whose songs none could be measured."""
    for system in evaluation.systems:
        if not any(song.measures for song in system.songs):
            first = next((text for song in system.songs for text in song.problems), "no file was found")
            raise InputError(system.folder, f"no song of it can be read ({first})", "mend the files or leave it out")


def _names(folders: Sequence[str | Path]) -> dict[str, Path]:
    """A name for each folder: its own, or so much of its path as tells it from the others."""
    paths = [Path(folder).resolve() for folder in folders]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise InputError(folders[index], "is named twice", "name each folder once")
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]).strip("/") or "root" for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths, strict=True))


def _store(out: Path, folders: Sequence[str | Path]) -> Path:
    """The folder for what is kept of single songs; raises InputError where ``out`` can't take it."""
    for folder in folders:
        if out.resolve().is_relative_to(Path(folder).resolve()):
            raise InputError(out, f"lies in {folder}, whose songs are measured", "name another folder with --out")
    store = out / STORE
    if out.exists() and not (out.is_dir() and (store.is_dir() or (out / FILE).is_file() or not any(out.iterdir()))):
        raise InputError(out, "exists and is no evaluation", "name a new folder with --out")
    return make_folder(store)


def _measured(systems: list[list[Job]], processes: int | None) -> Iterator[list[Found]]:
    """What was found of each job, system by system; songs that were measured before are read here."""
    jobs = {job.kept: job for system in systems for job in system if not job.kept.is_file()}
    killed = _measure_all(list(jobs.values()), processes) if jobs else {}
    for system in systems:
        yield [killed[job.kept] if job.kept in killed else measure(job) for job in system]


def _measure_all(jobs: list[Job], processes: int | None) -> dict[Path, Found]:
    """Measures songs side by side and keeps what is found; gives what to say of those that kill their worker.

    These are found by measuring what is left one by one.
    """
    try:
        with Workers(processes) as workers:
            for _ in track(workers.map(measure, jobs), "measuring songs", total=len(jobs)):
                pass
        return {}
    except InputError as error:
        if error.where != "worker":
            raise
    left = track([job for job in jobs if not job.kept.is_file()], "measuring songs one by one")
    return {job.kept: found for job in left if (found := _killed_by(job))}


def _killed_by(job: Job) -> Found | None:
    """Measures a song in a process of its own; None where that went well."""
    try:
        with Workers(2) as workers:
            list(workers.map(measure, [job]))
        return None
    except InputError as error:
        return Found(problems=[f"{error.what} while it measured this song; it may have run out of memory"])


def _system(name: str, songs: list[SongFiles], found: list[Found], distances: dict[str, float]) -> SystemResult:
    for one in found:
        for measure_name in [key for key, value in one.measures.items() if not math.isfinite(value)]:
            one.problems.append(f"{measure_name} is {one.measures.pop(measure_name)}: that is no result")
    results = [SongResult(name=song.name, file=song.file, **vars(one)) for song, one in zip(songs, found, strict=True)]
    return SystemResult(name=name, folder=str(songs[0].folder), songs=results, measures=distances)


def _packages(named: Named) -> Iterator[Missing]:
    needed = {"word_error": "jiwer"} if named.rmvpe else {"vocal_range": "librosa", "word_error": "jiwer"}
    for name, package in needed.items():
        if importlib.util.find_spec(package) is None:
            why = f"the package {package} is not installed (f0 files need none)"
            yield Missing(measure=name, why=why, how="pip install 'megatron-music[evaluation]'")


def _other_programs(scores: dict[tuple[str, str], dict[str, float]]) -> Iterator[Missing]:
    """Measures that only other programs take."""
    given = {name for found in scores.values() for name in found}
    for name, program, column in (
        ("audiobox_enjoyment", "Audiobox-Aesthetics (pip install audiobox_aesthetics)", "CE, CU, PC, PQ"),
        ("clamp3_score", "CLaMP 3 (github.com/sanderwood/clamp3)", "clamp3"),
    ):
        if name not in given:
            yield Missing(measure=name, why=f"it takes {program}", how=f"{_SCORES}, {column}")


def _lacking(name: str, songs: list[SongFiles], found: list[Found]) -> Iterator[Missing]:
    """Measures that songs could not have for want of a file beside them."""
    rules: dict[str, tuple[Callable[[SongFiles], bool], str, str]] = {
        "vocal_range": (partial(_has_none, {"vocals", F0}), "have neither vocals nor an f0 file", _SEPARATE),
        "vocal_to_accompaniment": (_has_no_stems, "have no vocals and accompaniment apart", "separate the songs"),
        "chorus_return": (_is_heard, "name no two choruses and another section with times",
                          "put a song.json with segments or msa beside them, as `generate` does"),
    }  # fmt: skip
    for measure_name, (applies, why, how) in rules.items():
        lacking = [
            song for song, one in zip(songs, found, strict=True) if measure_name not in one.measures and applies(song)
        ]
        if lacking:
            yield Missing(measure=measure_name, why=f"{len(lacking)} of {len(songs)} songs of {name} {why}", how=how)


def _has_none(tracks: set[str], song: SongFiles) -> bool:
    return not tracks & song.tracks.keys()


def _has_no_stems(song: SongFiles) -> bool:
    return _is_heard(song) and not {"vocals", "accompaniment"} <= song.tracks.keys()


def _is_heard(song: SongFiles) -> bool:
    return song.heard is not None

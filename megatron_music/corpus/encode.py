"""From audio to codes: every track of every song of a manifest, in shards that are whole or absent.

``OUT`` receives ``codes-00000.parquet`` and on, ``manifest.jsonl`` (the songs that could be encoded, naming their codes
as ``codes-00000.parquet#ID/TRACK``, with what annotators found out), ``rejects.parquet``, ``encoding.json`` (what the
codes are made with), of the embedded codec the fitted codec as ``OUT/codec``, and of some annotators files of their own
(``OUT/stems``). The manifest comes last: where it is, all shards are whole. Started again, after a kill or after songs
have changed, on any number of tasks and any executor, only shards are encoded that are missing or whose audio is new.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from megatron_music.audio.batches import window_samples
from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.files import read_audio
from megatron_music.corpus import encode_steps, fingerprint
from megatron_music.corpus.encode_finish import Encoded, Finish, check_tasks, finish
from megatron_music.corpus.encode_plan import CODEC, EMBEDDED, LOGS, SETTINGS, WORK, Plan, Settings, plan_shards
from megatron_music.corpus.executors import (
    Machines,
    jobs_in_queue,
    run_local,
    run_ray,
    submit_slurm,
    wait_for_jobs,
)
from megatron_music.corpus.shuffle import seeded_bits, seeded_permutation
from megatron_music.corpus.workplace import clear_litter, workplace
from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.progress import console, track
from megatron_music.songs.annotators import ANNOTATORS
from megatron_music.songs.manifest import place_of, read_manifest
from megatron_music.songs.song import Song

FIT_SONGS, FIT_SECONDS, FIT_EXCERPT_SECONDS = 256, 1800.0, 5.0
"""The embedded codec is fitted on at most this many songs and, by equal excerpts, this much of their tracks; but an
excerpt has at least ``FIT_EXCERPT_SECONDS``."""
GPU_BATCH_SECONDS = 600.0
"""Audio that a GPU encodes at once by default: about 15 GiB with X-Codec. A CPU is no faster with more than a track."""
MOST_TASKS = {"local": 1000, "slurm": 100, "ray": 100}
"""Tasks by default, at most; no more than there are shards."""
_PROGRESS = "encoding"


def encode_manifest(
    manifest: str | Path,
    out: str | Path,
    codec: str = EMBEDDED,
    weights: str | Path | None = None,
    codebooks: int = 8,
    codebook_size: int = 1024,
    device: str | None = None,
    annotators: Sequence[str] = (),
    annotator_options: Mapping[str, Mapping[str, str]] | None = None,
    window_seconds: float | None = None,
    batch_seconds: float | None = None,
    shard_songs: int = 64,
    seed: int = 0,
    machines: Machines | None = None,
    most_rejected: float = 1.0,
) -> Encoded | None:
    """Encodes all tracks that a manifest has audio of; returns what the folder holds then.

    None where jobs were submitted that go on on their own.

    The embedded codec without ``weights`` is fitted on a sample of the songs first (``codebook_size`` is only for that)
    and kept from then on. Vocals and accompaniment that differ in length stay as they are; segments are rescaled where
    the codec does not make 50 frames a second.

    Args:
        annotators: names of ``songs.annotators``, which hear every song in this order before the codec does.
        annotator_options: by annotator, its options as texts.
        window_seconds, batch_seconds: see ``audio.batches``; by default whole tracks, one at a time on a CPU and
            ``GPU_BATCH_SECONDS`` on a GPU.
        device: a torch device; by default the GPU where ``machines`` gives tasks one, else the CPU.
        most_rejected: share of rejected songs above which the last SLURM job fails, see ``Encoded.tell``.

    Raises InputError where the folder holds codes of another making, and where no song can be encoded.
    """
    manifest, machines = Path(manifest).resolve(), machines or Machines()
    machines.check()
    device = device or ("cuda" if machines.gpus else "cpu")
    if batch_seconds is None:
        batch_seconds = 0.0 if device.startswith("cpu") else GPU_BATCH_SECONDS
    heard = _annotators(annotators, annotator_options or {})
    settings = Settings(
        codec, None if weights is None else _absolute(weights), codebooks, codebook_size, seed, window_seconds, heard
    )
    place_of(manifest).tell(manifest)
    songs = sum(1 for _ in read_manifest(manifest))
    with workplace(out) as out:
        out = out.resolve()
        queued = jobs_in_queue(_job_name(out), out / LOGS)
        if queued:
            what = f"jobs {', '.join(queued)} are still filling this folder"
            raise InputError(out, what, f"wait for them, or `scancel {' '.join(queued)}` and run again")
        frames_per_second = _prepare_codec(manifest, out, settings, songs)
        _prepare_folder(out)
        plan = plan_shards(manifest, out, settings, frames_per_second, device, batch_seconds, shard_songs)
        if machines.executor != "slurm":
            return _run(plan, machines)
    # The jobs take the workplace themselves, one after another.
    return _submit(plan, machines, most_rejected)


def parse_annotator_options(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """``ANNOTATOR.NAME=VALUE`` by annotator and name; raises InputError on anything else."""
    options: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        annotator, dot, name = key.partition(".")
        if not (annotator and dot and name and equals):
            what = "is no option of an annotator"
            raise InputError(f"--annotator-option {text}", what, "write it like separate.weights=FILE")
        options.setdefault(annotator, {})[name] = value
    return options


def _annotators(names: Sequence[str], options: Mapping[str, Mapping[str, str]]) -> list[tuple[str, dict[str, str]]]:
    """Names with their options, the files among them with their whole paths, as tasks may start in other folders."""
    for name in [*names, *options]:
        if name not in ANNOTATORS:
            raise InputError(f"--annotate {name}", "is not known", f"name one of {', '.join(ANNOTATORS)}")
        if name not in names:
            raise InputError(f"--annotator-option {name}", "has options but is not named", f"add --annotate {name}")
        if list(names).count(name) > 1:
            raise InputError(f"--annotate {name}", "is named twice", "name it once")
    return [(name, {key: _absolute(value) for key, value in options.get(name, {}).items()}) for name in names]


def _absolute(value: str | Path) -> str:
    """The whole path of what is a file or folder here; anything else, such as a hub name, as it is."""
    return str(Path(value).resolve()) if str(value) and Path(value).exists() else str(value)


def _prepare_codec(manifest: Path, out: Path, settings: Settings, songs: int) -> float:
    """Makes sure that the folder is for these settings and the codec can be had; returns its frames a second.

    The settings are written once the codec is there, so that a folder without them holds nothing worth keeping.
    """
    encode_steps.forget_codec()  # an earlier call may have used the folder for another
    if (out / SETTINGS).is_file():
        before = read_json(out / SETTINGS)
        heard = [list(choice) for choice in settings.annotators]
        if before.get("annotators", []) != heard and not any(out.glob("codes-*.parquet")):
            # An annotator without its weights stops a run before the first shard: others may be chosen then.
            shutil.rmtree(out / WORK, ignore_errors=True)
            before["annotators"] = heard
            write_json(out / SETTINGS, before)
        kept = replace(Settings(), **{name: before[name] for name in asdict(settings) if name in before})
        for name, value in asdict(settings).items():
            earlier, now = ([*map(list, v)] if name == "annotators" else v for v in (getattr(kept, name), value))
            if earlier != now:
                what = f"holds codes of another making: {name} is {earlier}, not {now}"
                raise InputError(out, what, "remove the folder or name another")
        return before["frames_per_second"]
    codec: Codec
    if settings.codec == EMBEDDED and settings.weights is None:
        from megatron_music.audio.embedded import EmbeddedCodec

        excerpts = _fit_excerpts(manifest, songs, settings.seed, EmbeddedCodec.sample_rate)
        codec = EmbeddedCodec.fit(
            track(excerpts, "fitting a codec"), settings.codebooks, settings.codebook_size, settings.seed
        )
    else:
        codec = load_codec(settings.codec, settings.weights, "cpu", settings.codebooks)
    if settings.window_seconds is not None:
        window_samples(codec, settings.window_seconds)
    if settings.codec == EMBEDDED:
        codec.save(out / CODEC)
    write_json(out / SETTINGS, asdict(settings) | {"frames_per_second": codec.frames_per_second})
    return codec.frames_per_second


def _fit_excerpts(manifest: Path, songs: int, seed: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Excerpts of all tracks of a seeded choice of songs, float32 (samples,), as long as FIT_SECONDS allow."""
    chosen = set(seeded_permutation(songs, "codec songs", seed)[:FIT_SONGS].tolist())
    paths = [
        song.audio_path(name)
        for number, song in enumerate(read_manifest(manifest))
        if number in chosen and isinstance(song, Song)
        for name in song.audio
    ]
    most = int(sample_rate * max(FIT_SECONDS / max(len(paths), 1), FIT_EXCERPT_SECONDS))
    failure = "no song names any" if songs else "there is no line in it"
    found = False
    for number, path in enumerate(paths):
        try:
            samples = read_audio(path, sample_rate)
        except InputError as error:
            failure = str(error)  # encoding will reject the song
            continue
        found = True
        spare = max(len(samples) - most, 0)
        start = int(seeded_bits(1, "codec excerpt", seed, number)[0]) % (spare + 1)
        yield samples[start : start + most]
    if not found:
        raise InputError(manifest, f"has no audio to fit a codec on: {failure}", "mend the paths in the manifest")


def _prepare_folder(out: Path) -> None:
    """Removes the logs of an earlier run, and what killed processes left half-written."""
    shutil.rmtree(out / LOGS, ignore_errors=True)
    (out / WORK).mkdir(exist_ok=True)
    for folder in (out / WORK, *(out / "stems").glob("*")):
        clear_litter(folder)


def _tasks(plan: Plan, machines: Machines) -> int:
    return min(machines.tasks or MOST_TASKS[machines.executor], plan.shards)


def _pipeline(plan: Plan, shared: bool) -> list[encode_steps.PipelineStep]:
    return [
        encode_steps.ReadSongs(plan, shared),
        *(encode_steps.Annotate(plan, name, options) for name, options in plan.settings.annotators),
        encode_steps.Encode(plan),
        encode_steps.WriteShards(plan),
    ]


def _run(plan: Plan, machines: Machines) -> Encoded:
    """Runs all tasks and, once they have ended well, finishes."""
    tasks, pipeline = _tasks(plan, machines), _pipeline(plan, shared=False)
    if machines.executor == "ray":
        run_ray(pipeline, tasks, machines, plan.logs / "tasks", _PROGRESS)
        check_tasks(plan, plan.logs / "tasks", tasks)
    else:
        missing = {shard.number % tasks for shard in plan.read_shards() if not shard.is_whole()}
        workers = machines.workers or (None if plan.device.startswith("cpu") else 1)
        run_local(pipeline, tasks, sorted(missing), workers, plan.logs / "tasks", _PROGRESS)
        shutil.rmtree(plan.logs, ignore_errors=True)
    return finish(plan)


def _submit(plan: Plan, machines: Machines, most_rejected: float) -> Encoded | None:
    """Submits all tasks and the job that finishes; waits for them if asked to."""
    tasks, name, logs = _tasks(plan, machines), _job_name(plan.out), plan.logs
    if not tasks:
        return finish(plan)
    last = Finish(plan, logs / "tasks", tasks, most_rejected)
    array, end = submit_slurm(_pipeline(plan, shared=True), last, tasks, machines, logs, name)
    console.print(
        f"submitted {tasks} tasks as job {array}; job {end} then writes {plan.out / 'manifest.jsonl'}\n"
        f"look: squeue --jobs={array},{end}, and the logs in {logs}; stop: scancel {end} {array}; "
        "go on: the same command again",
    )
    if not machines.wait:
        return None
    wait_for_jobs(name, tasks, logs, _PROGRESS)
    if not (logs / "outcome.json").is_file():
        what = f"jobs {array} and {end} were cancelled or killed before the manifest was written"
        raise InputError(plan.out, what, f"see {logs}; run again, finished shards are kept")
    outcome = read_json(logs / "outcome.json")
    if isinstance(outcome, list):
        raise InputError(*outcome)
    return Encoded(**outcome)


def _job_name(out: Path) -> str:
    return f"encode-{fingerprint.of_value(str(out))[:8]}"

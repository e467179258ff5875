"""Songs a second that one process turns into documents, ours and beside it another preprocessor; memory of a build.

`documents` makes songs of a given length with random codes (Parquet shards of 8 codebooks for ours, `.npy` files of one
codebook for the peer) and times `build` of one source a task, in one process, from manifest to finished source: codes
read from disk, documents and kinds written, parts joined. `--peer COMMAND` times a command on the same songs, in turns
with ours; in it {manifest} is a manifest of .npy files, {output} a prefix for what it writes and {tokenizer} the
SentencePiece model. What a command needs for a single song, its start-up, is taken off its time.

    python tools/benchmark_corpus.py documents
    python tools/benchmark_corpus.py documents --tokenizer tokenizer.model --peer "python preprocess.py
        --input {manifest} --output-prefix {output} --tokenizer-model {tokenizer} ..."

`memory` builds a corpus of very many short songs and reads it, and prints the largest resident memory that any process
had, and all of them together.

    python tools/benchmark_corpus.py memory --songs 1000000
"""

import argparse
import datetime
import json
import os
import random
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil

from megatron_music.corpus.build import TOKENIZER, VOCABULARY, Part, build_part
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.shuffle import EpochOrder
from megatron_music.corpus.spec import BuildSpec
from megatron_music.documents.texts import texts_of_manifest
from megatron_music.songs.codes import CodesRow, write_codes_shard
from megatron_music.songs.manifest import write_manifest
from megatron_music.songs.song import TRACKS, Segment, Song
from megatron_music.vocabulary.text import train_text_tokenizer

VOCABULARY_PATH = Path(__file__).resolve().parents[1] / "tokenizers" / "yue.yaml"
FRAMES_PER_SECOND, CODEBOOKS, SONGS_A_SHARD = 50, 8, 64
TASKS = {
    "lyrics_to_song": {"task": "lyrics_to_song"},
    "reference": {"task": "reference", "mode": "random"},
    "unconditional": {"task": "unconditional", "tracks": "dual"},
    "speech": {"task": "speech"},
    "residual": {"task": "residual"},
}
WORDS = "river moon light over the hill we go and sing a song of home until morning comes for you".split()
POLL_S = 0.1


def main() -> None:
    options = read_options()
    print(f"{datetime.date.today()}  {cpu_name()}, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.benchmark(options, Path(folder))
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    documents = verbs.add_parser("documents", help="songs a second of one process, by task")
    documents.set_defaults(benchmark=benchmark_documents)
    documents.add_argument("--songs", type=int, default=256)
    documents.add_argument("--seconds", type=float, default=180.0, help="length of a song")
    documents.add_argument("--rounds", type=int, default=5)
    documents.add_argument("--tokenizer", type=Path, help="SentencePiece model (default: a small one, trained first)")
    documents.add_argument("--peer", help="command of another preprocessor, with {manifest} {output} {tokenizer}")
    memory = verbs.add_parser("memory", help="resident memory of a build of many songs, and of reading it")
    memory.set_defaults(benchmark=benchmark_memory)
    memory.add_argument("--songs", type=int, default=1_000_000)
    memory.add_argument("--seconds", type=float, default=1.2, help="length of a song")
    memory.add_argument("--processes", type=int, default=os.cpu_count())
    for verb in (documents, memory):
        verb.add_argument("--folder", help="where the songs and corpora lie meanwhile (default: the system's)")
    return parser.parse_args()


def benchmark_documents(options: argparse.Namespace, folder: Path) -> None:
    songs = write_songs(folder / "codes", options.songs, options.seconds)
    tokenizer = options.tokenizer or small_tokenizer(folder)
    contenders: dict[str, Callable[[], None]] = {}
    for name, fields in TASKS.items():
        spec = write_spec(folder / f"{name}.json", tokenizer, {name: {**fields, "manifest": str(songs)}})
        contenders[name] = part_builder(spec, folder / "ours")
    start_up = {"wall": 0.0, "cpu": 0.0}
    if options.peer:
        manifest, one = write_peer_songs(folder / "npy", options.songs, options.seconds)
        start_up = timed(peer(options.peer, one, folder / "one", tokenizer))
        contenders["peer"] = peer(options.peer, manifest, folder / "peer", tokenizer)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for round_index in range(options.rounds):
        # Who went last goes first in the next round: neither always runs in the other's wake.
        for name in list(contenders)[:: 1 if round_index % 2 == 0 else -1]:
            spent = timed(contenders[name])
            seconds[name].append({key: spent[key] - start_up[key] * (name == "peer") for key in spent})
    print(f"{options.songs} songs of {options.seconds:g} s, {options.rounds} rounds, one process, medians (and range)")
    if options.peer:
        print(f"the peer's start-up, {start_up['wall']:.1f} s, is taken off")
        print(f"lyrics_to_song and the peer wrote the same ids: {same_ids(folder)}")
    for name, rounds in seconds.items():
        for key, noun in (("wall", "songs/s"), ("cpu", "songs/s of processor time")):
            print(f"{name:16} {spread([options.songs / spent[key] for spent in rounds], 1)} {noun}")
    if options.peer:
        for key, noun in (("wall", "time"), ("cpu", "processor time")):
            ours, theirs = seconds["lyrics_to_song"], seconds["peer"]
            ratios = [other[key] / own[key] for own, other in zip(ours, theirs, strict=True)]
            print(f"ratio of {noun}, round by round: {spread(ratios, 2)}")


def benchmark_memory(options: argparse.Namespace, folder: Path) -> None:
    few = write_songs(folder / "codes", 8, options.seconds)
    tokenizer = small_tokenizer(folder)
    manifest = repeat_songs(few, folder / "codes" / "many.jsonl", options.songs)
    size = manifest.stat().st_size / 2**30
    print(
        f"{options.songs:,} songs of {options.seconds:g} s, a manifest of {size:.2f} GiB, {options.processes} processes"
    )
    source = {"task": "lyrics_to_song", "manifest": str(manifest)}
    spec = write_spec(folder / "spec.json", tokenizer, {"songs": source})
    verb = [sys.executable, "-m", "megatron_music", "build", str(spec), str(folder / "corpus")]
    watch("build", [*verb, "--processes", str(options.processes)])
    watch("read", [sys.executable, "-c", "import sys, benchmark_corpus as b; b.read_corpus(sys.argv[1])",
                   str(folder / "corpus" / "songs")])  # fmt: skip


def write_songs(folder: Path, songs: int, seconds: float) -> Path:
    """A manifest of songs with random codes in Parquet shards."""
    frames = round(seconds * FRAMES_PER_SECOND)
    made = []
    for first in range(0, songs, SONGS_A_SHARD):
        shard = f"{first:08d}.parquet"
        rows = [
            CodesRow(str(number), track, "xcodec", random_codes(CODEBOOKS, frames, number, track))
            for number in range(first, min(first + SONGS_A_SHARD, songs))
            for track in TRACKS
        ]
        write_codes_shard(folder / shard, rows)
        for place in range(0, len(rows), len(TRACKS)):
            references = {row.track: row.reference(shard) for row in rows[place : place + len(TRACKS)]}
            made.append(song(rows[place].id, references, folder, seconds))
    write_manifest(folder / "manifest.jsonl", made)
    return folder / "manifest.jsonl"


def write_peer_songs(folder: Path, songs: int, seconds: float) -> tuple[Path, Path]:
    """The same songs as single `.npy` files of their first codebook: all of them, and a manifest of one."""
    frames = round(seconds * FRAMES_PER_SECOND)
    folder.mkdir()
    made = []
    for number in range(songs):
        references = {track: str(folder / f"{number}.{track}.npy") for track in TRACKS}
        for track, path in references.items():
            np.save(path, random_codes(CODEBOOKS, frames, number, track)[:1])
        made.append(song(str(number), references, folder, seconds))
    write_manifest(folder / "manifest.jsonl", made)
    write_manifest(folder / "one.jsonl", made[:1])
    return folder / "manifest.jsonl", folder / "one.jsonl"


def random_codes(codebooks: int, frames: int, number: int, track: str) -> np.ndarray:
    rng = np.random.default_rng([number, TRACKS.index(track)])
    return rng.integers(0, 1024, (codebooks, frames), dtype=np.int16)


def song(id: str, codes: dict[str, str], folder: Path, seconds: float) -> Song:
    """A song of sections of about 20 s, six lines of lyrics in each."""
    rng = random.Random(id)
    frames = round(seconds * FRAMES_PER_SECOND)
    sections = max(1, round(seconds / 20))
    bounds = [frames * section // sections for section in range(sections + 1)]
    segments = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        lines = "\n".join(" ".join(rng.choices(WORDS, k=7)) for _ in range(6))
        timing = {"offset": start / FRAMES_PER_SECOND, "duration": (end - start) / FRAMES_PER_SECOND}
        segments.append(Segment(f"[{('verse', 'chorus')[number % 2]}]\n{lines}\n\n", start, end, timing))
    structure = [{"start": 0.0, "end": seconds, "label": "chorus"}]
    genres = ", ".join(rng.sample(WORDS, 5))
    text = " ".join(rng.choices(WORDS, k=12))
    return Song(id, codes, {}, seconds, genres, segments, structure, "en", text, folder)


def repeat_songs(few: Path, manifest: Path, songs: int) -> Path:
    """A manifest of many songs beside that of a few: each has an id of its own and the codes of one of the few."""
    lines = [json.loads(line) for line in few.read_text(encoding="utf-8").splitlines()]
    with manifest.open("w", encoding="utf-8") as file:
        for number in range(songs):
            file.write(json.dumps({**lines[number % len(lines)], "id": f"song-{number:012d}"}) + "\n")
    return manifest


def small_tokenizer(folder: Path) -> Path:
    train_text_tokenizer(texts_of_manifest(folder / "codes" / "manifest.jsonl"), folder / "t.model", 600)
    return folder / "t.model"


def write_spec(path: Path, tokenizer: Path, sources: dict[str, dict]) -> Path:
    spec = {
        "vocabulary": str(VOCABULARY_PATH),
        "tokenizer": str(tokenizer.resolve()),
        "codec": "xcodec",
        "sources": sources,
    }
    path.write_text(json.dumps(spec))
    return path


def part_builder(spec: Path, folder: Path) -> Callable[[], None]:
    """Makes all songs of a spec's only source one part, as a worker of a larger build would, in ``folder``."""
    plan = BuildSpec.read(spec)
    (source,) = plan.sources
    folder.mkdir(exist_ok=True)
    shutil.copyfile(plan.vocabulary_path, folder / VOCABULARY)
    shutil.copyfile(plan.tokenizer_path, folder / TOKENIZER)

    def build() -> None:
        songs = tuple(plan.songs(source))
        build_part(Part(folder / source.name, folder, source, plan.codec, plan.seed, "benchmark", songs))

    build()
    return build


def peer(command: str, manifest: Path, output: Path, tokenizer: Path) -> Callable[[], None]:
    filled = [part.format(manifest=manifest, output=output, tokenizer=tokenizer) for part in shlex.split(command)]

    def run() -> None:
        done = subprocess.run(filled, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"the peer failed with status {done.returncode}: {done.stderr[-500:]}")

    return run


def timed(run: Callable[[], None]) -> dict[str, float]:
    """Seconds of a run on the clock, and of processor time of this process and of its children."""
    cpu, started = processor_s(), time.perf_counter()
    run()
    return {"wall": time.perf_counter() - started, "cpu": processor_s() - cpu}


def processor_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def same_ids(folder: Path) -> bool:
    """Whether the peer's only ``.bin`` holds the ids of our lyrics-to-song documents, and no others."""
    theirs = list(folder.glob("peer*.bin"))
    ours = folder / "ours" / "lyrics_to_song.bin"
    return len(theirs) == 1 and theirs[0].read_bytes() == ours.read_bytes()


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):8.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def watch(name: str, command: list[str]) -> None:
    """Runs a command and prints its time and the largest resident memory of its processes."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    parent = largest_worker = together = 0
    while process.poll() is None:
        sizes = list(resident_bytes(process))
        if sizes:
            parent, together = max(parent, sizes[0]), max(together, sum(sizes))
            largest_worker = max([largest_worker, *sizes[1:]])
        time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{name} failed with status {process.returncode}")
    print(
        f"{name:5} {time.perf_counter() - started:7.1f} s, resident at most: parent {parent / 2**20:,.0f} MiB, "
        f"largest other process {largest_worker / 2**20:,.0f} MiB, all together {together / 2**20:,.0f} MiB",
        flush=True,
    )


def resident_bytes(process: psutil.Process) -> Iterator[int]:
    """Resident memory of a process and then of those it started; those that have just ended are left out."""
    try:
        for member in [process, *process.children(recursive=True)]:
            yield member.memory_info().rss
    except psutil.NoSuchProcess:
        return


def read_corpus(prefix: str) -> None:
    """Opens a source, puts an epoch's documents in order, and reads a thousand of them."""
    source = IndexedSource(prefix)
    order = EpochOrder(source.lengths, (0, "benchmark"))
    for position in np.linspace(0, source.total_tokens - 1, 1000).astype(int).tolist():
        document, _, _ = order.from_token(position)
        source.document(document)


def cpu_name() -> str:
    """The processor as Linux names it."""
    with open("/proc/cpuinfo") as lines:
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name} ({os.cpu_count()} cores)"


if __name__ == "__main__":
    main()

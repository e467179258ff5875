"""How soon a run on a large blend has its first samples, and how fast the loader reads; megatron-core's beside it.

Start: the sources of examples/yue_7b.yaml, each with as many tokens as the whole run takes from it, as indices over
sparse files, so that nothing but the index is real. A fresh process reads the first sample, and then on until it has
met every source of the first phase: seconds since the process started, and its peak memory (VmHWM); then it traces a
song through the whole run. The index is dropped from the page cache before.

Loader: random tokens on disk, read step by step as one of 64 data-parallel processes reads them (``Loader``), in turns
with megatron-core's blend over the same files.

    python tools/benchmark_stream.py --scratch FOLDER
    python tools/benchmark_stream.py --scratch FOLDER --tokens 100e9 --no-peer
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_music.corpus.blend import run_stream, token_shares, tokens_given
from megatron_music.corpus.contents import SCHEMA, SUFFIX
from megatron_music.corpus.indexed import IndexedWriter, write_index
from megatron_music.corpus.shuffle import seeded_generator
from megatron_music.corpus.trace import trace_song
from megatron_music.files import write_json
from megatron_music.recipe.phases import phase_spans, step_at
from megatron_music.recipe.recipe import Recipe
from megatron_music.tables import short_count, table

RECIPE = Path(__file__).parents[1] / "examples" / "yue_7b.yaml"
DOCUMENT_TOKENS = (2_000, 18_000)
SONG = "a-song"
COPIES = 64
"""Data-parallel processes of 512 GPUs in the recipe's layout."""
NEEDED = 20 * 67_500
"""Tokens a second: 20 times what a process of the 0.5B model eats on an H100."""


def main() -> None:
    options = read_options()
    if options.child:
        print(json.dumps(CHILDREN[options.child](Path(options.scratch))))
        return
    scratch = Path(options.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    peer = [] if options.no_peer else ["megatron-core"]
    measured = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "date": datetime.date.today().isoformat(),
        "start": start(scratch / "start", options.tokens, ["megatron-music", *peer]),
        "loader": loader(scratch / "loader", int(options.loader_tokens), options.rounds, bool(peer)),
    }
    print(report(measured))
    write_json(scratch / "benchmark_stream.json", measured)
    for folder in ("start", "loader"):
        shutil.rmtree(scratch / folder)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", required=True, help="folder for the corpora (5 GB) and benchmark_stream.json")
    parser.add_argument("--tokens", type=float, default=1.75e12, help="tokens of the blend whose start is measured")
    parser.add_argument("--loader-tokens", type=float, default=2e8, help="tokens on disk for the loader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="leave megatron-core out")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    return parser.parse_args()


def recipe_over(corpus: Path) -> Recipe:
    """YuE's 7B recipe over another corpus."""
    return Recipe.load(RECIPE, [f"corpus={corpus}"])


def start(folder: Path, tokens: float, contenders: list[str]) -> dict[str, dict]:
    """Seconds and peak memory until a fresh process has samples, by contender."""
    sizes = write_sparse_corpus(folder, tokens)
    measured = {"blend": {"sources": len(sizes), "tokens": sum(sizes.values())}}
    for name in contenders:
        drop_from_cache(folder)
        begin = time.time()
        command = [sys.executable, __file__, "--child", name, "--scratch", str(folder)]
        done = subprocess.run(command, env={**os.environ, "BEGIN": repr(begin)}, stdout=subprocess.PIPE, text=True)
        failed = {"failed": f"exit status {done.returncode}"}
        measured[name] = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
    return measured


def write_sparse_corpus(folder: Path, tokens: float) -> dict[str, int]:
    """Indices of all sources, about ``tokens`` together, over .bin and .kind that take no room; tokens by source.

    Their tables of songs name one song, in one document of each source.
    """
    recipe = recipe_over(folder)
    shares = token_shares(recipe, {})
    given = tokens_given(phase_spans(recipe), shares)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for name in recipe.source_names:
        share = float(sum(phase.get(name, 0) for phase in given)) / phase_spans(recipe)[-1].last_token
        documents = max(1, round(share * tokens / np.mean(DOCUMENT_TOKENS)))
        lengths = seeded_generator("benchmark", name).integers(*DOCUMENT_TOKENS, documents, dtype=np.int32)
        sizes[name] = int(lengths.sum(dtype=np.int64))
        with open(folder / f"{name}.idx", "wb") as stream:
            write_index(stream, lengths)
        for suffix, size in ((".bin", 4), (".kind", 1)):
            with open(folder / f"{name}{suffix}", "wb") as stream:
                stream.truncate(sizes[name] * size)
        write_json(folder / f"{name}.json", {"documents": documents, "tokens": sizes[name]})
        row = {"document": documents // 2, "id": SONG, "language": "", "genres": "", "seconds": 0.0}
        pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), folder / f"{name}{SUFFIX}")
    return sizes


def drop_from_cache(folder: Path) -> None:
    """Makes the next reading of the indices come from disk."""
    for path in folder.glob("*.idx"):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def standing() -> tuple[float, float]:
    """Seconds since the parent started this process, and its peak memory in GiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return time.time() - float(os.environ["BEGIN"]), int(status["VmHWM"].split()[0]) / 2**20


def start_ours(corpus: Path) -> dict[str, float]:
    import megatron_music.training.data  # noqa: F401 (torch and megatron-core are part of a process' start)

    imported_s, imported_gib = standing()
    recipe = recipe_over(corpus)
    stream = run_stream(recipe)
    stream.sample(0)
    first_s, _ = standing()
    met = {stream.sample(0).source}
    for index in itertools.count(1):
        if len(met) == len(recipe.phases[0].mixture.names):
            break
        met.add(stream.sample(index).source)
    every_s, gib = standing()
    occurrences = trace_song(SONG, recipe)
    return {
        "imports_s": imported_s,
        "imports_gib": imported_gib,
        "first_sample_s": first_s,
        "every_source_s": every_s,
        "peak_gib": gib,
        "trace_s": standing()[0] - every_s,
        "traced": len(occurrences),
    }


def start_peer(corpus: Path) -> dict[str, float]:
    import megatron.core.datasets.gpt_dataset  # noqa: F401

    imported_s, imported_gib = standing()
    spans = phase_spans(recipe_over(corpus))
    dataset = peer_dataset(corpus, samples=sum(span.steps * span.phase.batch_sequences for span in spans))
    dataset[0]
    first_s, gib = standing()
    return {"imports_s": imported_s, "imports_gib": imported_gib, "first_sample_s": first_s, "peak_gib": gib}


CHILDREN: dict[str, Callable[[Path], dict[str, float]]] = {"megatron-music": start_ours, "megatron-core": start_peer}


def peer_dataset(corpus: Path, samples: int):
    """megatron-core's blend of the recipe's first phase over the same files, ``samples`` long."""
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    recipe = recipe_over(corpus)
    shares = token_shares(recipe, {})[0]
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=recipe.phases[0].context_tokens,
        blend=([str(corpus / name) for name in shares], [float(share) for share in shares.values()]),
        split="1,0,0",
        path_to_cache=str(corpus / "cache"),
        tokenizer=SimpleNamespace(eod=0, pad=-1, vocab_size=83_968, unique_identifiers={"name": "synthetic"}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def loader(folder: Path, tokens: int, rounds: int, with_peer: bool) -> dict[str, list[float]]:
    """Tokens a second of one process, a figure a round, by contender; they take turns."""
    write_random_corpus(folder, tokens)
    contenders = {"megatron-music": our_reading(folder)}
    if with_peer:
        contenders["megatron-core"] = peer_reading(folder)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for round in range(rounds + 1):
        for name, reading in contenders.items():
            begin, read = time.perf_counter(), 0
            while read < 4_000_000:
                read += next(reading)
            if round:  # the first opens files and orders
                speeds[name].append(read / (time.perf_counter() - begin))
    return speeds


def write_random_corpus(folder: Path, tokens: int) -> None:
    names = recipe_over(folder).source_names
    for name in names:
        random = seeded_generator("loader", name)
        with IndexedWriter(folder / name) as writer:
            while writer.tokens < tokens // len(names):
                ids = random.integers(0, 83_734, random.integers(*DOCUMENT_TOKENS), dtype=np.int32)
                writer.add(ids, ids % 8)


def our_reading(corpus: Path) -> Iterator[int]:
    """Tokens of each step as one process of the run reads them."""
    from megatron_music.training.data import Loader
    from megatron_music.training.marks import Marks

    recipe = recipe_over(corpus)
    spans = phase_spans(recipe)
    ours = Loader(run_stream(recipe), spans, [Marks()] * len(spans), rank=0, copies=COPIES)
    for index in itertools.count():
        yield sum(batch.ids[:, 1:].size for batch in ours.batches(step_at(spans, index)))


def peer_reading(corpus: Path) -> Iterator[int]:
    """The same share of each step from megatron-core's blend: inputs and labels of a sequence a micro-batch."""
    recipe = recipe_over(corpus)
    dataset = peer_dataset(corpus, samples=400 * recipe.phases[0].batch_sequences)
    for step in itertools.count():
        first = step * recipe.phases[0].batch_sequences
        indices = range(first, first + recipe.phases[0].batch_sequences, COPIES)
        batches = [dataset[index] for index in indices]
        yield sum(batch["tokens"].numel() for batch in batches)


def report(measured: dict) -> str:
    blend, *contenders = measured["start"].values()
    rows = [["start", "imports, s", "first sample, s", "every source, s", "imports, GiB", "peak, GiB", "trace, s"]]
    for name, figures in zip(list(measured["start"])[1:], contenders, strict=True):
        fields = ("imports_s", "first_sample_s", "every_source_s", "imports_gib", "peak_gib", "trace_s")
        rows.append([name, *(f"{figures[field]:.1f}" if field in figures else "-" for field in fields)])
    speeds = [["loader", "tokens/s", "slowest", "fastest", "times 67,500"]]
    for name, of_round in measured["loader"].items():
        middle = statistics.median(of_round)
        figures = (middle, min(of_round), max(of_round))
        speeds.append([name, *(f"{figure:,.0f}" for figure in figures), f"{middle / (NEEDED / 20):.0f}"])
    return "\n".join(
        [
            f"{measured['machine']}, {measured['date']}",
            f"a blend of {short_count(blend['tokens'])} tokens in {blend['sources']} sources",
            table(rows),
            "",
            table(speeds),
        ]
    )


if __name__ == "__main__":
    main()

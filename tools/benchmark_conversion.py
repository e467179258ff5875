"""Import and export of a network of a recipe's size, beside `cp` of the same bytes on the same disk.

Weights are random BF16. Import, export and `cp` each run in a process of their own and end with their files flushed to
the disk; before each, the disk's cache of its input is dropped. Memory is the peak of what the process allocates
itself (RssAnon): pages of mapped input files are the system's to take back. The imported network is exported, and the
files of the export are compared with those of the input bit for bit.

    python tools/benchmark_conversion.py --recipe examples/yue_7b.yaml --scratch /data/scratch
"""

import argparse
import filecmp
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_music.conversion.export import SHARD_BYTES
from megatron_music.conversion.llama import llama_config, llama_weights
from megatron_music.files import write_json
from megatron_music.progress import track
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.text import train_text_tokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

IMPORT = "from megatron_music.conversion.import_llama import import_llama as run"
EXPORT = "from megatron_music.conversion.export import export_checkpoint as run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("examples/yue_7b.yaml"), help="whose network to convert")
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure; needs four times the weights")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    recipe = Recipe.load(options.recipe)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        size = write_network(recipe, folder / "hf")
        print(f"{recipe.name}: {size / 1e9:.2f} GB of weights, {options.rounds} rounds")
        race(folder, size, options.rounds)


def write_network(recipe: Recipe, folder: Path) -> int:
    """A Hugging Face folder of random weights, in the shards that an export would have; returns the weights' bytes."""
    folder.mkdir()
    vocabulary = Vocabulary.load(recipe.vocabulary)
    shutil.copyfile(recipe.vocabulary, folder / "vocabulary.yaml")
    write_json(folder / "config.json", llama_config(recipe.network, vocabulary.padded_size, "bfloat16", 0))
    train_text_tokenizer(["la la la"], folder / "tokenizer.model", 300)
    size = total = 0
    weights = list(llama_weights(recipe.network, vocabulary.padded_size))
    names: list[list[str]] = [[]]
    for weight in weights:
        if names[-1] and size + 2 * weight.elements > SHARD_BYTES:
            names.append([])
            size = 0
        names[-1].append(weight.name)
        size += 2 * weight.elements
        total += 2 * weight.elements
    shapes = {weight.name: weight.shape for weight in weights}
    files = [f"model-{number:05d}-of-{len(names):05d}.safetensors" for number in range(1, len(names) + 1)]
    for file, members in zip(track(files, "writing weights"), names, strict=True):
        tensors = {name: torch.randint(-(2**15), 2**15, shapes[name], dtype=torch.int16) for name in members}
        # No bit pattern is left out but those of numbers that are none, which compare unequal to themselves.
        tensors = {name: (bits & ~(1 << 14)).view(torch.bfloat16) for name, bits in tensors.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    places = {name: file for file, members in zip(files, names, strict=True) for name in members}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
    return total


def race(folder: Path, size: int, rounds: int) -> None:
    """Runs the contenders in turns and prints their speeds, peaks and ratios."""
    hf, checkpoint, again = folder / "hf", folder / "checkpoint", folder / "again"
    weights = sorted(hf.glob("*.safetensors"))
    contenders = {
        "cp": (hf, ["cp", *map(str, weights), str(folder / "copy")]),
        "import": (hf, [sys.executable, "-c", f"{IMPORT}\nrun({str(hf)!r}, {str(checkpoint)!r})"]),
        "export": (checkpoint, [sys.executable, "-c", f"{EXPORT}\nrun({str(checkpoint)!r}, {str(again)!r})"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, int] = dict.fromkeys(contenders, 0)
    for _ in range(rounds):
        for path in (folder / "copy", checkpoint, again):
            shutil.rmtree(path, ignore_errors=True)
        (folder / "copy").mkdir()
        for name, (source, command) in contenders.items():
            forget(source)
            start = time.perf_counter()
            peaks[name] = max(peaks[name], run(command))
            if name == "cp":
                subprocess.run(["sync", "-f", str(folder)], check=True)
            seconds[name].append(time.perf_counter() - start)
    same = all(filecmp.cmp(path, again / path.name, shallow=False) for path in weights)
    print(f"files of the second export equal to the input's: {same}")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        spread = f"{min(taken):.1f} to {max(taken):.1f}"
        memory = "" if name == "cp" else f", {peaks[name] / 2**30:.2f} GiB of its own memory at most"
        print(f"{name:8} {middle:7.1f} s ({spread}), {size / middle / 1e6:6.0f} MB/s{memory}")
    for name in ("import", "export"):
        ratio = statistics.median(a / b for a, b in zip(seconds["cp"], seconds[name], strict=True))
        print(f"{name} ratio {ratio:.2f}")


def forget(folder: Path) -> None:
    """Drops a folder's files from the system's cache, so that every contender reads them from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str]) -> int:
    """Runs a command to its end; returns the most bytes that it had allocated itself, looked at every 20 ms."""
    process = subprocess.Popen(command)
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{command[0]} ended with status {status}")
    return peak


if __name__ == "__main__":
    main()

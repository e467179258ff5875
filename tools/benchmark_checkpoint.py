"""What saving costs the steps: without saves, with saves that are waited for, and with saves beside training.

One process trains a network on random ids, pinned to one core; the thread that writes, sums and syncs is pinned to
another. In every round each way of saving has its turn, in a new order: the same steps, with a checkpoint at their
beginning, which is synced to disk. What a way costs is how much longer its steps and its wait take than the same steps
without a save. A write that is not done within the steps, as it is within the intervals of a run, is waited for outside
the time, and told.

    python tools/benchmark_checkpoint.py
    python tools/benchmark_checkpoint.py --hidden 768 --steps 24 --folder /mnt/disk/scratch

Its last lines say what share of the write a save costs the steps, on the clock and, for a machine that others use too,
of processor time: that of the thread that trains over that of the thread that writes, whose waiting for the disk then
does not count.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from training_loop import small_recipe

from megatron_music.engine import processes
from megatron_music.engine.engine import Batch, Engine
from megatron_music.engine.saving import Saving

VOCABULARY, CONTEXT = 4096, 256
WAYS = ("none", "waited for", "beside")


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("needs two cores, one to train and one to write")
    os.sched_setaffinity(0, {cores[0]})
    # FP32, so that every parameter takes 16 bytes of a checkpoint.
    sizes = {"hidden": options.hidden, "layers": options.layers, "heads": 8, "ffn": 4 * options.hidden}
    recipe = small_recipe(**sizes, context=CONTEXT, sequences=1)
    processes.join(recipe.layout)
    engine = Engine(recipe, VOCABULARY)
    folder = Path(tempfile.mkdtemp(prefix="benchmark_checkpoint.", dir=options.folder))
    try:
        measure(engine, folder, cores, options)
    finally:
        engine.finish_saves()
        shutil.rmtree(folder)
    processes.leave()


def measure(engine: Engine, folder: Path, cores: list[int], options: argparse.Namespace) -> None:
    """Prints a line a round, and the medians."""
    train(engine, 2)
    save(engine, folder).wait()
    [writer] = [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
    os.sched_setaffinity(writer.native_id, {cores[1]})
    written = sum(path.stat().st_size for path in (folder / "checkpoint").iterdir())
    print(f"checkpoint of {written / 1e6:.0f} MB, {options.steps} steps a turn, cores {cores[0]} and {cores[1]}")
    print("seconds on the clock (of processor time): of the steps with their save, of the write, of the copy")
    print("round " + "".join(f"{name:>18s}" for name in (*WAYS, "write", "copy")))
    rounds = []
    for number in range(options.rounds):
        found: dict[str, Times] = {}
        for way in WAYS[number % 3 :] + WAYS[: number % 3]:
            found |= turn(engine, folder, writer, way, options.steps)
        rounds.append(found)
        print(f"{number + 1:5d} " + "".join(f"{found[name].told():>18s}" for name in (*WAYS, "write", "copy")))
    write = Times.median([found["write"] for found in rounds])
    for way in WAYS[1:]:
        lost = Times.median([found[way] - found["none"] for found in rounds])
        print(
            f"{way}: costs the steps {lost.told()} of the write's {write.told()}: "
            f"{lost.clock / write.clock:.1%} on the clock, {lost.processor / write.processor:.1%} of processor time"
        )
    print(f"the write's rate: {written / write.clock / 1e6:.0f} MB/s, synced")


@dataclass(frozen=True)
class Times:
    """Seconds on the clock and of one thread's processor time."""

    clock: float
    processor: float

    @classmethod
    def now(cls, thread: threading.Thread) -> "Times":
        return cls(time.perf_counter(), time.clock_gettime(time.pthread_getcpuclockid(thread.ident)))

    @classmethod
    def median(cls, times: list["Times"]) -> "Times":
        return cls(*(statistics.median(getattr(one, name) for one in times) for name in ("clock", "processor")))

    def __sub__(self, other: "Times") -> "Times":
        return Times(self.clock - other.clock, self.processor - other.processor)

    def told(self) -> str:
        return f"{self.clock:.2f} ({self.processor:.2f})"


def turn(engine: Engine, folder: Path, writer: threading.Thread, way: str, steps: int) -> dict[str, Times]:
    """Times of the steps with their save; of the write where it is waited for; of the copy where it is beside."""
    os.sync()
    trainer = threading.current_thread()
    began, writer_began = Times.now(trainer), Times.now(writer)
    found = {}
    saving = save(engine, folder) if way != "none" else None
    if way == "beside":
        found["copy"] = Times.now(trainer) - began
    elif way == "waited for":
        saving.wait()
        found["write"] = Times.now(writer) - writer_began
    train(engine, steps)
    found[way] = Times.now(trainer) - began
    if way == "beside" and not saving.is_done:
        print(f"      the write took longer than {steps} steps: give more --steps, so that all of it counts")
        saving.wait()
    return found


def save(engine: Engine, folder: Path) -> Saving:
    """Starts to write the one checkpoint again."""
    return engine.start_save(folder / "checkpoint")


def train(engine: Engine, steps: int) -> None:
    """Steps of one sequence of random ids each."""
    for step in range(steps):
        ids = np.random.default_rng(step).integers(0, VOCABULARY, (1, CONTEXT + 1))
        engine.step(1e-4, engine.forward_backward([Batch(ids, np.zeros(ids.shape, np.uint8))]))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size")
    parser.add_argument("--layers", type=int, default=4, help="layers")
    parser.add_argument("--steps", type=int, default=24, help="steps a turn, more than the write takes")
    parser.add_argument("--rounds", type=int, default=5, help="how often every way has its turn")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; else the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()

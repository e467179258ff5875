"""What the processes of the tests of saving run."""

import json
import resource
from pathlib import Path

import engine_workers
import torch

from megatron_music.engine import processes

LIMIT_BYTES = 100_000
"""Less than a process writes."""


def save_and_fail(folder: Path) -> None:
    """BF16 on two copies: a checkpoint, one that the second process can't write, and that one again; leaves faults."""
    torch.set_num_threads(1)
    processes.join(engine_workers.recipe({}).layout)
    engine = engine_workers.start({}, None, "bf16")
    engine_workers.train(engine, 0, 2)
    faults = [engine.start_save(folder / "first").wait()]
    if torch.distributed.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.RLIM_INFINITY))
    faults.append(engine.start_save(folder / "second").wait())
    left = sorted(path.name for path in folder.iterdir())
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    beside = engine.start_save(folder / "beside")
    engine_workers.train(engine, 2, 4)
    faults.append(beside.wait())
    engine.finish_saves()
    again = engine_workers.start({}, folder / "first", "bf16")
    faults.append(again.start_save(folder / "again").wait())
    everyones = [None, None]
    torch.distributed.all_gather_object(everyones, faults)
    engine_workers.write(folder, "faults", {"faults": everyones, "left": left})
    processes.leave()


def read(folder: Path) -> dict:
    """What ``save_and_fail`` found."""
    return json.loads((folder / "faults.json").read_text())

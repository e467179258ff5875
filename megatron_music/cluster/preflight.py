"""Preflight: tests the GPUs, links and file system of a job before its first step, and names what is not fit."""

import contextlib
import os
import socket
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_music.engine import processes
from megatron_music.engine.launchers import read_start
from megatron_music.exits import ExitCode, RunEnded
from megatron_music.files import make_folder
from megatron_music.progress import console
from megatron_music.tables import table
from megatron_music.training.watchdog import Watchdog

MiB, GiB = 2**20, 2**30
SLOW = 0.5
"""A rate below this share of the median of all processes is a fault."""
_HANG_SECONDS, _SEES_SECONDS = 120.0, 30.0


class BadMachine(RunEnded):
    """The job holds a GPU, link or file system that is not fit for it."""

    code = ExitCode.BAD_MACHINE


@dataclass(frozen=True)
class Health:
    """What one process found; rates are None where there was nothing to measure.

    Attributes:
        products_tflops: matrix products in BF16 on a GPU, in FP32 on a CPU.
        node_gbs, all_gbs: all-reduce within the node and over all processes, GB/s of each process' link (2 (n-1) / n
            times the bytes, by the time).
        next_gbs: from the node before and to the one behind at once, GB/s each way.
        disk_mbs: writing with fsync, MB/s.
    """

    rank: int
    node: str
    device: str
    products_tflops: float | None = None
    memory_gib: float | None = None
    node_gbs: float | None = None
    next_gbs: float | None = None
    all_gbs: float | None = None
    disk_mbs: float | None = None
    faults: tuple[str, ...] = field(default=())


def preflight(folder: Path, processes_per_node: int | None = None) -> None:
    """Tests this job with as many processes as GPUs, or ``processes_per_node``, and prints a table.

    Under torchrun, or srun with a task a process, this process is one of theirs; with a task a node it starts them.

    Args:
        folder: where the run will write.

    Raises:
        InputError: ``folder`` is not one, or this process was started as ``read_start`` refuses.
        BadMachine: naming nodes and GPUs, and what is wrong with each.
    """
    from megatron_music.engine.elastic import start

    started = read_start(os.environ)
    make_folder(folder)
    if started.note is not None and processes_per_node is None:
        console.print(started.note)
    if started.is_one_of_several(processes_per_node):
        run_process(folder)
    else:
        start(run_process, processes_per_node or max(1, torch.cuda.device_count()), folder)


def run_process(folder: Path) -> None:
    """The preflight as one of the processes sees it; all raise the same BadMachine."""
    processes.join_world()
    with Watchdog(folder / "stacks", _HANG_SECONDS):
        found: list[Health | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, _examine(folder))
        judged = judge(found)
        if dist.get_rank() == 0:
            print(report(judged), flush=True)
        dist.barrier()
    dist.destroy_process_group()
    bad = [health for health in judged if health.faults]
    if bad:
        raise BadMachine(
            f"preflight: {len(bad)} of {len(judged)} processes are not fit: " + "; ".join(map(_named, bad))
        )


def judge(found: Sequence[Health]) -> list[Health]:
    """Adds the faults that only show beside the others: rates of GPUs below ``SLOW`` of the median.

    CPUs are not judged: what else runs on them makes them as slow.
    """
    judged = list(found)
    for name, what in (("products_tflops", "TFLOP/s"), ("node_gbs", "GB/s within the node"),
                       ("next_gbs", "GB/s to the next node")):  # fmt: skip
        rates = [getattr(health, name) for health in found if getattr(health, name) is not None]
        for at, health in enumerate(judged):
            rate = getattr(health, name)
            if health.device != "cpu" and rate is not None and rate < SLOW * statistics.median(rates):
                fault = f"{rate:.3g} {what}, where the median is {statistics.median(rates):.3g}"
                judged[at] = replace(health, faults=(*health.faults, fault))
    return judged


def report(judged: Sequence[Health]) -> str:
    """A table of all processes."""
    rates = ["TFLOP/s", "memory GiB", "node GB/s", "next GB/s", "all GB/s", "disk MB/s"]
    rows = [["rank", "node", "device", *rates, "fit"]]
    for health in judged:
        rates = (health.products_tflops, health.memory_gib, health.node_gbs, health.next_gbs, health.all_gbs,
                 health.disk_mbs)  # fmt: skip
        cells = ["-" if rate is None else f"{rate:.3g}" for rate in rates]
        rows.append([str(health.rank), health.node, health.device, *cells, "no" if health.faults else "yes"])
    return table(rows, left=3)


def _named(health: Health) -> str:
    return f"{health.node} {health.device} (rank {health.rank}): {', '.join(health.faults)}"


def _examine(folder: Path) -> Health:
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    measured: dict[str, float | None] = {}
    faults: list[str] = []
    places: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(places, socket.gethostname())
    tests: list[Callable[[], dict[str, float | None]]] = [
        lambda: _facts(device, faults),
        lambda: _products(device, faults),
        lambda: _memory(device, faults),
        lambda: _links(device, places, faults),
        lambda: _files(folder, faults),
    ]
    for test in tests:
        try:
            measured |= test()
        except (RuntimeError, OSError) as error:
            faults.append(str(error).splitlines()[0])
    name = f"cuda:{device.index}" if device.index is not None else "cpu"
    return Health(dist.get_rank(), places[dist.get_rank()], name, **measured, faults=tuple(faults))


def _facts(device: torch.device, faults: list[str]) -> dict[str, float | None]:
    """What the driver counts: errors of memory that ECC could not correct, and clocks that are held down by heat."""
    if device.type == "cpu":
        return {}
    query = "ecc.errors.uncorrected.volatile.total,clocks_throttle_reasons.hw_thermal_slowdown"
    gpu = str(torch.cuda.get_device_properties(device).uuid)
    command = ["nvidia-smi", f"--id=GPU-{gpu}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    errors, _, slowed = answer.stdout.strip().partition(", ")
    if errors.isdigit() and int(errors):
        faults.append(f"{errors} uncorrected errors of its memory (ECC)")
    if slowed == "Active":
        faults.append("its clock is held down by heat")
    return {}


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product that is tested."""
    return a @ b


def _products(device: torch.device, faults: list[str], seconds: float = 1.0) -> dict[str, float | None]:
    """Products of matrices of -1, 0 and 1, checked exactly as Freivalds does: (A B) v = A (B v)."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 256
    generator = torch.Generator().manual_seed(dist.get_rank())
    # Sums stay whole numbers below 256, which BF16 holds exactly: a column of B has at most 64 entries that are not 0.
    a = torch.randint(-1, 2, (size, size), generator=generator)
    b = torch.zeros(size, size, dtype=torch.int64)
    rows = torch.randint(0, size, (64, size), generator=generator)
    b.scatter_(0, rows, torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1)
    vector = torch.randint(-3, 4, (size, 1), generator=generator)
    expected = a.double() @ (b.double() @ vector.double())
    left, right = (matrix.to(device, torch.bfloat16 if on_gpu else torch.float32) for matrix in (a, b))
    count, since = 0, _now(device)
    while count == 0 or _now(device) - since < seconds:
        products = [multiply(left, right) for _ in range(10)]
        count += len(products)
    spent = _now(device) - since
    wrong = sum(not torch.equal(product.cpu().double() @ vector.double(), expected) for product in products)
    if wrong:
        faults.append(f"{wrong} of {len(products)} matrix products are wrong")
    return {"products_tflops": 2 * size**3 * count / spent / 1e12}


def _memory(device: torch.device, faults: list[str]) -> dict[str, float | None]:
    """Writes a pattern to nearly all of a GPU's memory (64 MiB of a CPU's) and reads it back."""
    on_gpu = device.type == "cuda"
    size, block = (int(torch.cuda.mem_get_info(device)[0] * 0.9), GiB) if on_gpu else (64 * MiB, 16 * MiB)
    pattern = torch.arange(block // 8, dtype=torch.int64, device=device).mul_(6364136223846793005)  # of any bits
    blocks = [pattern.clone().add_(number) for number in range(size // block - 1)]
    bad = sum(not torch.equal(copy.sub_(number), pattern) for number, copy in enumerate(blocks))
    if bad:
        faults.append(f"{bad} of {len(blocks)} blocks of memory do not hold what was written")
    return {"memory_gib": size / GiB}


def _links(device: torch.device, places: list[str], faults: list[str]) -> dict[str, float | None]:
    """All-reduces within the node and over all, and what neighbouring nodes send each other, checked and timed."""
    names, rank = list(dict.fromkeys(places)), dist.get_rank()
    members = {name: [at for at, place in enumerate(places) if place == name] for name in names}
    groups = {name: dist.new_group(ranks) for name, ranks in members.items()}
    mine = members[places[rank]]
    measured = {
        "node_gbs": _all_reduce(device, groups[places[rank]], mine, f"within {places[rank]}", faults),
        "all_gbs": _all_reduce(device, dist.group.WORLD, list(range(len(places))), "over all processes", faults),
    }
    if len(names) > 1 and len({len(ranks) for ranks in members.values()}) == 1:
        at, local = names.index(places[rank]), mine.index(rank)
        before, behind = (names[(at + step) % len(names)] for step in (-1, 1))
        measured["next_gbs"] = _send(device, members[before][local], members[behind][local], before, faults)
    return measured


def _all_reduce(
    device: torch.device, group: dist.ProcessGroup, ranks: list[int], where: str, faults: list[str]
) -> float | None:
    if len(ranks) == 1:
        return None
    size = (256 if device.type == "cuda" else 1) * MiB
    values = torch.arange(size // 4, device=device, dtype=torch.float32).remainder_(1024)
    expected = values * len(ranks) + sum(ranks)
    seconds = []
    for _ in range(5):
        part = values + dist.get_rank()
        dist.barrier(group)
        since = _now(device)
        dist.all_reduce(part, group=group)
        seconds.append(_now(device) - since)
        if not torch.equal(part, expected):
            faults.append(f"an all-reduce {where} gives a wrong sum")
            break
    return 2 * (len(ranks) - 1) / len(ranks) * size / min(seconds) / 1e9


def _send(device: torch.device, source: int, target: int, name: str, faults: list[str]) -> float:
    size = (256 if device.type == "cuda" else 1) * MiB
    mine = torch.full((size // 4,), float(dist.get_rank()), device=device)
    theirs = torch.empty_like(mine)
    seconds = []
    for _ in range(5):
        dist.barrier()
        since = _now(device)
        both = [dist.P2POp(dist.isend, mine, target), dist.P2POp(dist.irecv, theirs, source)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        seconds.append(_now(device) - since)
    if not bool((theirs == source).all()):
        faults.append(f"what {name} sent did not arrive as it was")
    return size / min(seconds) / 1e9


def _files(folder: Path, faults: list[str]) -> dict[str, float | None]:
    """Writes, syncs, renames, reads back; and looks whether all nodes see the same folder."""
    rank, size = dist.get_rank(), (256 if torch.cuda.is_available() else 4) * MiB
    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    shared = folder / f".preflight-{token[0]}"
    rate = None
    try:
        shared.mkdir(exist_ok=True)
        content, written = bytes(range(256)) * (size // 256), shared / f"{rank}.tmp"
        since = time.perf_counter()
        with written.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        rate = size / (time.perf_counter() - since) / 1e6
        written.rename(shared / str(rank))
        if (shared / str(rank)).read_bytes() != content:
            faults.append(f"a file in {folder} does not hold what was written")
    except OSError as error:
        faults.append(f"{folder}: {error.strerror}")
    dist.barrier()
    absent = _absent([shared / str(other) for other in range(dist.get_world_size())])
    if absent:
        faults.append(f"{folder} is not the same for all nodes: the files of ranks {', '.join(absent)} are not seen")
    dist.barrier()
    with contextlib.suppress(OSError):
        (shared / str(rank)).unlink()
    dist.barrier()
    if rank == 0:
        with contextlib.suppress(OSError):
            shared.rmdir()
    return {"disk_mbs": rate}


def _absent(paths: list[Path]) -> list[str]:
    """Names of the files that do not appear; a network file system may take a while."""
    deadline = time.monotonic() + _SEES_SECONDS
    while (absent := [path.name for path in paths if not path.exists()]) and time.monotonic() < deadline:
        time.sleep(0.5)
    return absent


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

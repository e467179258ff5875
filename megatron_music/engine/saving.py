"""Checkpoints written beside training: it waits while what is written is copied to host memory, and no longer.

A thread of every process writes, sums and syncs its own file and tells the first process through the store that the
processes have met in; that one waits for all, writes what there is once (torch's metadata, megatron-core's common
state), lists all files and gives the folder its name. No collective runs beside training: the only ones are those of
the first save, in which the processes agree on the pieces. What goes wrong on any of them is the outcome on all, and
takes the folder away.

Megatron-core's own asynchronous saving forks processes of a process that holds GPUs, waits for ever for one that was
killed, and reads nothing that could be summed.
"""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.default_planner import _validate_global_plan, create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StoragePrefix
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_music.engine.integrity import BEFORE, Mark, SummedFile, names_of_files, synced_marks, write_list
from megatron_music.engine.pieces import Piece
from megatron_music.engine.summed import SummedFiles, without_torchs_sums
from megatron_music.files import sync, write_json

_WAIT = timedelta(hours=1)
"""How long processes wait for each other's writing before they take it for failed."""


class Saving:
    """A checkpoint that is being written."""

    def __init__(self, outcome: "Future[str | None]"):
        self._outcome = outcome

    @property
    def is_done(self) -> bool:
        """Whether it has been written, or has failed, on all processes."""
        return self._outcome.done()

    def wait(self) -> str | None:
        """What went wrong, the same on every process; None where the checkpoint stands under its final name."""
        return self._outcome.result()


class Saver:
    """Writes checkpoints of one network on this process, one at a time."""

    _saves = 0
    """Of all networks, so that no two meet under one name in the store."""

    def __init__(self):
        self._host: dict[tuple[str, torch.Size], torch.Tensor] = {}
        self._metadata: Metadata | None = None
        self.has_agreed = False
        """Whether the processes have agreed on the pieces, which stay the same."""
        self._store = None
        # Its thread is waited for when the interpreter ends.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Saving | None = None

    def start(
        self,
        final: Path,
        pieces: list[Piece],
        common: dict[str, Any],
        complete: Callable[[Path], None] | None = None,
        afterwards: Callable[[], None] | None = None,
    ) -> Saving:
        """Copies ``pieces``, and writes them as the folder ``final`` beside whatever the caller does next.

        All processes call it. Until it is complete the folder's name begins with a dot. On the first process count the
        ``common`` state, ``complete``, which writes more into the folder, and ``afterwards``, which the thread does
        when the folder has its name and nobody waits any longer.
        """
        if self._last is not None:
            self._last.wait()  # it reads the copies
        if not self.has_agreed:
            self._metadata = _agree([piece.item for piece in pieces])
            self.has_agreed = True
            # A connection of the thread's own: a call that waits would keep others out.
            self._store = torch.distributed.distributed_c10d._get_default_store().clone()
        content = io.BytesIO()
        torch.save(common, content)
        Saver._saves += 1
        copies = self._copied(pieces)
        self._last = Saving(self._thread.submit(self._save, final, copies, content, complete, self._saves))
        if afterwards is not None and torch.distributed.get_rank() == 0:
            self._thread.submit(lambda saving: saving.wait() is None and afterwards(), self._last)
        return self._last

    def finish(self) -> None:
        """Waits until the thread has nothing left to do."""
        self._thread.submit(lambda: None).result()

    def _copied(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces in host memory that is kept for the next save."""
        copies = []
        for piece in pieces:
            if isinstance(piece.data, io.BytesIO):
                copies.append(piece)
                continue
            name = piece.item.index.fqn, piece.item.index.offset
            if name not in self._host:
                self._host[name] = torch.empty(
                    piece.data.shape, dtype=piece.data.dtype, device="cpu", pin_memory=piece.data.is_cuda
                )
            self._host[name].copy_(piece.data, non_blocking=True)
            copies.append(Piece(piece.item, self._host[name]))
        torch.cuda.synchronize()
        return copies

    def _save(
        self,
        final: Path,
        pieces: list[Piece],
        common: io.BytesIO,
        complete: Callable[[Path], None] | None,
        number: int,
    ) -> str | None:
        """In the thread: the whole of it; returns what went wrong."""
        folder, key = final.with_name(f".{final.name}"), f"checkpoint/{number}"
        rank = torch.distributed.get_rank()
        try:
            share = _write_share(folder, pieces, rank)
        except Exception as error:
            share = fault_of(error)
        try:
            if rank > 0:
                self._store.set(f"{key}/{rank}", pickle.dumps(share))
                self._store.wait([f"{key}/outcome"], _WAIT)
                return pickle.loads(self._store.get(f"{key}/outcome"))
            outcome = self._finish(folder, final, share, common, complete, key)
            self._store.set(f"{key}/outcome", pickle.dumps(outcome))
            self._store.delete_key(f"checkpoint/{number - 1}/outcome")
            return outcome
        except Exception as error:
            return f"the processes lost each other ({fault_of(error)})"

    def _finish(
        self,
        folder: Path,
        final: Path,
        own: "tuple[list[WriteResult], dict[str, Mark]] | str",
        common: io.BytesIO,
        complete: Callable[[Path], None] | None,
        key: str,
    ) -> str | None:
        """On the first process: waits for all, then makes the folder whole."""
        shares = [own]
        for rank in range(1, torch.distributed.get_world_size()):
            self._store.wait([f"{key}/{rank}"], _WAIT)
            shares.append(pickle.loads(self._store.get(f"{key}/{rank}")))
            self._store.delete_key(f"{key}/{rank}")
        fault = next((share for share in shares if isinstance(share, str)), None)
        if fault is None:
            try:
                marks = {name: mark for _, written in shares for name, mark in written.items()}
                _write_once(folder, self._metadata, [results for results, _ in shares], common)
                if complete is not None:
                    complete(folder)
                write_list(folder, marks | synced_marks(folder, names_of_files(folder) - marks.keys()))
                sync(folder)
                _rename(folder, final)
            except Exception as error:
                fault = fault_of(error)
        if fault is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return fault


def _rename(folder: Path, final: Path) -> None:
    """Gives a folder its name; one of a run that was done again takes the place of the one before."""
    before = folder.with_name(folder.name + BEFORE)
    if final.exists():
        os.replace(final, before)
    os.replace(folder, final)
    sync(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def fault_of(error: Exception) -> str:
    """An error in the words of a line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _agree(items: list[WriteItem]) -> Metadata | None:
    """On the first process: torch's description of the whole of what all write, which must cover every tensor once."""
    is_first = torch.distributed.get_rank() == 0
    plans = [None] * torch.distributed.get_world_size() if is_first else None
    torch.distributed.gather_object(SavePlan(items), plans)
    if not is_first:
        return None
    _, metadata = create_default_global_save_plan(plans)
    errors = _validate_global_plan([*plans, SavePlan([])], metadata)
    if errors:
        raise RuntimeError(f"the processes' pieces do not make up the whole: {errors[0]}")
    return metadata


class _Resolver(DefaultSavePlanner):
    """Gives torch's writer the data of its items."""

    def __init__(self, pieces: list[Piece]):
        super().__init__()
        self._data = {piece.item.index: piece.data for piece in pieces}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The piece of this item."""
        return self._data[write_item.index]


def _write_share(folder: Path, pieces: list[Piece], rank: int) -> tuple[list[WriteResult], dict[str, Mark]]:
    """Writes and syncs the file of one process; none where it has nothing to write."""
    folder.mkdir(parents=True, exist_ok=True)
    if not pieces:
        return [], {}
    writer = FileSystemWriter(folder, thread_count=1, per_thread_copy_ahead=0)
    writer.fs = SummedFiles()
    plan = SavePlan([piece.item for piece in pieces], storage_data=_StoragePrefix(f"__{rank}_"))
    with without_torchs_sums():
        return writer.write_data(plan, _Resolver(pieces)).wait(), writer.fs.marks


def _write_once(folder: Path, metadata: Metadata, results: list[list[WriteResult]], common: io.BytesIO) -> None:
    """What megatron-core finds in a checkpoint beside the processes' files."""
    FileSystemWriter(folder).finish(metadata, results)
    with SummedFile(folder / "common.pt") as file:
        file.write(common.getbuffer())
    write_json(folder / "metadata.json", asdict(CheckpointingConfig("torch_dist", 1)))

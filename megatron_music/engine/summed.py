"""Files that torch's writer of distributed checkpoints opens, summed while they are written."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystem

from megatron_music.engine.integrity import Mark, SummedFile


class SummedFiles(FileSystem):
    """In place of a writer's ``fs``; keeps the marks of the files that were written to their end, by name."""

    def __init__(self):
        self.marks: dict[str, Mark] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        """A new file; raises the OSError of a write that failed."""
        file = SummedFile(path)
        try:
            yield file
        except RuntimeError:
            # What torch's archive makes of a write that failed.
            if file.error is not None:
                raise file.error from None
            raise
        finally:
            file.close()
        self.marks[Path(path).name] = file.mark


@contextmanager
def without_torchs_sums() -> Iterator[None]:
    """Within it, torch does not sum what it saves by itself, which no reader looks at: the files are summed whole."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)

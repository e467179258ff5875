"""A folder that one run at a time fills, and that a run started again finds in order."""

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import make_folder

_LOCK = ".lock"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}")


@contextmanager
def workplace(folder: str | Path, shared: bool = False) -> Iterator[Path]:
    """Makes ``folder`` and keeps other runs out of it while the block runs.

    What ``atomic_path`` could not clear away because its process was killed is cleared before and after. ``shared``
    lets others in that say the same, as the tasks of one job do, and clears nothing. Raises InputError where the name
    is taken by a file or another run is at work in the folder.
    """
    folder = make_folder(folder)
    with open(folder / _LOCK, "w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(folder, "another run is filling this folder", "wait for it or name another") from None
        except OSError:
            pass  # Some cluster file systems have no locks; there it is on the user to start one run at a time.
        if shared:
            yield folder
            return
        clear_litter(folder)
        try:
            yield folder
        finally:
            clear_litter(folder)


def clear_litter(folder: Path) -> None:
    """Removes what killed processes left of ``atomic_path`` in a folder that nobody else writes to."""
    for path in folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and path.is_dir() and {file.name for file in path.iterdir()} <= {match["name"], "replaced"}:
            shutil.rmtree(path)

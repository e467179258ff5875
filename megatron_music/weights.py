"""Files of weights as downloads leave them, looked at before a library reads them, and PyTorch's own kind of file.

A clone without git-lfs holds pointers, and a download that was stopped empty files and links to nothing. Libraries tell
each of them as damage.
"""

import os
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_music.errors import InputError

_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = b"PK\x03\x04"


def require_content(path: str | Path, mend: str) -> None:
    """Raises InputError where ``path`` is no file, a link to nothing, empty, or git-lfs' pointer in place of a file."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except FileNotFoundError:
        what = f"is a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "no such file"
        raise InputError(path, what, mend) from None
    except IsADirectoryError:
        raise InputError(path, "no such file, but a folder", mend) from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "check its permissions") from None
    if not start:
        raise InputError(path, "can't be read: it is empty", mend)
    if start == _POINTER:
        raise InputError(path, "is git-lfs' pointer to a file, not the file", f"run `git lfs pull` in {path.parent}")


def load_pickled(path: str | Path, mend: str) -> Any:
    """What PyTorch has saved in a file: tensors, and plain containers of them. Nothing in the file is run.

    Tensors are mapped: memory holds what is used of them. Those in the form of PyTorch before 1.6 are read whole.

    Raises InputError where the file is missing, is cut short or is no such file, and where it holds other objects.
    """
    import torch

    require_content(path, mend)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that another program wrote
            return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damage shows as any of a dozen types, depending on the byte
        # PyTorch's own text fills a page, and advises to run what stands in the file.
        objects: list[str] = []
        with suppress(Exception):
            objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if objects:
            what = f"holds Python objects beside tensors, which are not loaded since they can run code: {objects[0]}"
            raise InputError(path, what, "have it saved again as safetensors, or as tensors alone") from None
        fault = "its end is missing" if _is_cut(Path(path)) else type(error).__name__
        raise InputError(path, f"can't be read as weights ({fault})", "fetch the file again") from None


def _is_cut(path: Path) -> bool:
    """Whether a file begins as an archive, whose list of contents stands at its end, and has none."""
    with path.open("rb") as stream:
        return stream.read(len(_ZIP)) == _ZIP and not zipfile.is_zipfile(path)

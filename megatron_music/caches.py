"""Caches of libraries, which they keep in the user's home and can't where that is read-only, as in containers."""

import atexit
import os
import shutil
import tempfile

_OF_LIBRARIES = {"MPLCONFIGDIR": "matplotlib", "NUMBA_CACHE_DIR": "numba", "TRITON_CACHE_DIR": "triton"}
"""Variables that name a cache. Hugging Face's holds models too, which are read where they are."""


def keep_caches_somewhere() -> None:
    """Gives libraries a folder for temporary files to cache in, until this process ends, where the home is no place.

    Without, Numba refuses to compile what librosa needs where Python's packages are read-only too, and matplotlib
    warns. A user's own variables stay.
    """
    names = [name for name in _OF_LIBRARIES if not os.environ.get(name)]
    if not names or all(_can_be_written(os.path.expanduser(folder)) for folder in ("~/.cache", "~/.config")):
        return
    try:
        folder = tempfile.mkdtemp(prefix="megatron-music-caches-")
    except OSError:  # nowhere at all: whoever needs one says so
        return
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {name: os.path.join(folder, _OF_LIBRARIES[name]) for name in names}


def _can_be_written(path: str) -> bool:
    """Whether the folder, or the first one above it that can be seen, takes files."""
    while not os.path.exists(path) and os.path.dirname(path) != path:  # unlike Path's, never a PermissionError
        path = os.path.dirname(path)
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)

"""Results in files, so that a run that was killed goes on and nothing is measured twice.

A file's name is a fingerprint of all that decides its content. A file that can't be read is made again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json, write_json


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """The content of a JSON file, made where there is none."""
    try:
        return read_json(path)
    except InputError:
        content = make()
    write_json(path, content)
    return content


def kept_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of an ``.npy`` file, made where there is none."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        array = make()
    with atomic_path(path) as temporary:
        np.save(temporary, array)
    return array

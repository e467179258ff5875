"""Short names for content: equal where the content is equal, so that finished work is known again."""

import hashlib
import json
from pathlib import Path
from typing import Any

_DIGITS = 16
_BLOCK_BYTES = 1 << 20


def of_value(value: Any) -> str:
    """Fingerprint of anything that JSON can hold; the order of a mapping's fields does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]


def of_file(path: str | Path) -> str:
    """Fingerprint of a file's bytes, read block by block."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()[:_DIGITS]


def of_folder(path: str | Path) -> str:
    """Fingerprint of the names and bytes of all files below a folder."""
    path = Path(path)
    return of_value({str(file.relative_to(path)): of_file(file) for file in path.rglob("*") if file.is_file()})


def of_stat(path: str | Path) -> tuple[int, int] | None:
    """Size in bytes and modification time in nanoseconds, by which a change is seen; None where there is no file."""
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns


def of_stats(path: str | Path) -> list[tuple[str, tuple[int, int] | None]]:
    """Names, sizes and times of a file, or of all files below a folder; of what is neither, such as a hub name, none.

    In place of ``of_folder`` for weights of many gigabytes.
    """
    files = [Path(path), *sorted(Path(path).rglob("*"))]
    return [(str(file), of_stat(file)) for file in files if file.is_file()]

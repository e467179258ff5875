"""Files that are complete or absent, and reading the small ones with errors that name them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from megatron_music.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` that takes its name once the block ends without an error.

    The content is flushed to disk before the rename, so that a crash leaves the old file or the new one. The block may
    also create a folder under the yielded name; it then replaces a folder of the final name. A file never does: raises
    InputError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of our own keeps the final suffix on the temporary name: writers choose a format by it.
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = workspace / path.name
    try:
        yield temporary
        for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
            if file.is_file():
                sync(file)
        if path.is_dir():
            if temporary.is_file():
                raise InputError(path, "is a folder", "name a file")
            path.rename(workspace / "replaced")
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def sync(path: str | os.PathLike) -> None:
    """Brings a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a whole text file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes ``content`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | os.PathLike) -> str:
    """Reads a UTF-8 text file; raises InputError where it is missing or not text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(path, "no such file", "check the path") from None
    except IsADirectoryError:
        raise InputError(path, "is a folder", "name a file in it") from None
    except UnicodeDecodeError as error:
        raise InputError(path, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "check the path and its permissions") from None


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; raises InputError with the line where it does not parse."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}", f"is not JSON ({error.msg})", "mend the file") from None


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping; raises InputError otherwise."""
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}: line {mark.line + 1}" if mark else path
        raise InputError(where, f"is not YAML ({getattr(error, 'problem', error)})", "mend the file") from None
    if not isinstance(content, dict):
        raise InputError(path, "does not hold a mapping of fields", "write `name: value` lines")
    return content

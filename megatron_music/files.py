"""Files that are complete or absent, and reading the small ones with errors that name them."""

import codecs
import errno
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from megatron_music.errors import InputError

_MARKS = (  # the longer first: a mark of UTF-32 begins like one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_OF_THE_PLACE = errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG
"""Another place would do; a full disk, or a broken one, is no fault of the name."""
_MARK_OF_A_LINE = re.compile("^\ufeff+", re.MULTILINE)
_TO_UTF8 = (
    "save it as UTF-8, or `iconv -f ENCODING -t UTF-8` (CP1252 from Western Windows, GB18030 Chinese, CP932 Japanese)"
)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` that takes its name once the block ends without an error.

    The content is flushed to disk before the rename, so that a crash leaves the old file or the new one. The block may
    also create a folder under the yielded name; it then replaces a folder of the final name. A file never takes a
    folder's place, nor a folder a file's: raises InputError. An OSError of the block names this file, see
    ``naming``.
    """
    path = Path(path)
    workspace = _workspace(path)
    temporary = workspace / path.name
    try:
        with naming(path):
            yield temporary
        for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
            if file.is_file():
                sync(file)
        if path.is_dir():
            if temporary.is_file():
                raise InputError(path, "is a folder", "name a file")
            path.rename(workspace / "replaced")
        elif path.exists() and temporary.is_dir():
            raise InputError(path, "is a file", "name a folder")
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _workspace(path: Path) -> Path:
    """A new folder beside ``path``: in it the temporary name can keep the suffix, by which writers choose a format."""
    make_folder(path.parent)
    try:
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        raise InputError(path, f"can't be written ({error.strerror})", "name a place that can be written") from None


def require_writable(path: str | os.PathLike) -> None:
    """Raises InputError where no file or folder of this name can be written; for what takes long to make."""
    _workspace(Path(path)).rmdir()


def make_folder(path: str | os.PathLike) -> Path:
    """Makes a folder, and those above it, where there is none; raises InputError where that can't be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(path, "is a file or lies below one", "name a folder") from None
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        raise InputError(path, f"can't be made ({error.strerror})", "name a folder that can be written") from None
    return path


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Has an OSError of the block name ``path`` where it names no file, or the one that was to be copied there."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename2 is not None:
            error.filename = str(path)
            del error.filename2
        raise


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


def as_utf8(text: str) -> str:
    """A text that UTF-8 can hold: half a surrogate pair, as JSON and names of files can have, becomes its escape."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


class NotText(InputError):
    """A file that holds no text in UTF-8, nor in UTF-16 or UTF-32 behind their marks."""


def as_on_disk(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``, spelled as a file there whose name has accents in the other form of Unicode.

    Such names come from Macs, whose files other programs list in one form and copy in the other. Where there is no
    file in either form, the path is as it was named.
    """
    path = folder / name
    if name.isascii() or os.path.lexists(path):
        return path
    there = folder
    for part in Path(name).parts:
        forms = [part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        found = next((there / one for one in forms if os.path.lexists(there / one)), None)
        if found is None:
            return path
        there = found
    return there


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file: without byte order marks, and with ``\\n`` at the ends of lines, whatever wrote it.

    UTF-8, and what Windows calls Unicode: UTF-16 or UTF-32 behind a byte order mark. Any other encoding is not guessed
    at, since a short text fits several. Of marks, those at the start of a line are left out, as files that were put
    together have them in the middle too.

    Raises InputError where the file is missing or can't be read, its kind NotText where it holds no such text.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(path, "no such file", "check the path") from None
    except IsADirectoryError:
        raise InputError(path, "is a folder", "name a file in it") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "check the path and its permissions") from None
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if not marked and (unmarked := _unmarked_utf16(data)):
        raise NotText(
            path, f"is {unmarked} text without its mark", f"save it as UTF-8, or `iconv -f {unmarked} -t UTF-8`"
        )
    encoding = marked or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotText(path, f"is not {encoding.upper()} text (byte {error.start})", _TO_UTF8) from None
    return _MARK_OF_A_LINE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _unmarked_utf16(data: bytes) -> str | None:
    """UTF-16LE or UTF-16BE where every other byte is mostly 0, as in Western text of that encoding."""
    for first, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if 2 * data[first::2].count(0) > len(data[first::2]) and not data[1 - first :: 2].count(0):
            return encoding
    return None


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; raises InputError with the line where it does not parse."""
    return parse_json(read_text(path), path)


def parse_json(text: str, where: object, first_line: int = 1) -> Any:
    """Parses what stands in ``where`` from a line on; raises InputError with the line where it does not parse."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{where}: line {line}", f"is not JSON ({error.msg})", "mend the file") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise InputError(where, f"can't be read as JSON ({error})", "mend the file") from None


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

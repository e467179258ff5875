"""What ``metrics.jsonl`` tells of a run, however long it is: its first line, its last ones, and its events."""

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_music.errors import InputError
from megatron_music.training.events import ENDED, METRICS, ROLLED_BACK, STOPPED

TREND_STEPS = 200
"""Lines of steps that are kept for the trend of a loss."""
EVENTS_KEPT = 8
_SHOWN = ("skipped", ROLLED_BACK, "checkpoint_failed", STOPPED, ENDED)
_EVENT, _STEP, _HELD_OUT, _INVALID = (
    b'"event": ',
    b'"learning_rate": ',
    b'"validation/loss": ',
    b'"invalid_token_share": ',
)


@dataclass
class Unread:
    """Whole lines that tell nothing: of a damaged file, or another program's. One that a kill cut off is no whole line.

    Attributes:
        first: the number of the first of them, from 1.
    """

    count: int = 0
    first: int = 0

    def add(self, number: int) -> None:
        """Counts one."""
        self.count, self.first = self.count + 1, self.first or number

    def __str__(self) -> str:
        """In words; nothing where there is none."""
        more = f" and {self.count - 1:,} more" if self.count > 1 else ""
        return f"line {self.first:,}{more} can't be read" if self.count else ""


class RunLines:
    """A run as its metrics tell it; ``read`` goes on from where it stopped, so that a live view reads a line once.

    Only events and the last lines of each sort are parsed: a file of a million lines takes a second.

    Attributes:
        plan: the last ``started`` event; empty for a run that was begun before there was one.
        steps: the last lines of steps, oldest first.
        held_out, invalid: the last lines of held-out losses, and of the share of invalid tokens.
        checkpoint: the last ``checkpoint`` event.
        events: the last of those that tell of troubles and ends; ``counts`` of each name are of all.
        last: the last line.
        unread: lines that are no JSON objects, as far as their ends show.
        time: of the last line that has one, seconds since 1970.
    """

    def __init__(self, run: Path):
        self.run, self.path = Path(run), Path(run) / METRICS
        if not self.path.is_file():
            raise InputError(run, f"is not a run: no {METRICS}", "name a run folder, or a folder of them")
        self._read_bytes = self._inode = 0
        self._forget()
        self.read()

    def _forget(self) -> None:
        self.plan, self.checkpoint, self.held_out, self.invalid, self.last = ({} for _ in range(5))
        self.steps: deque[dict[str, Any]] = deque(maxlen=TREND_STEPS)
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self.counts: Counter[str] = Counter()
        self.time: float | None = None
        self._read_lines, self.unread = 0, Unread()

    @property
    def end(self) -> str | None:
        """The event that the run closed with, ``ENDED`` or ``STOPPED``; None of one that goes on or was killed."""
        event = self.last.get("event")
        return event if event in (ENDED, STOPPED) else None

    def read(self) -> None:
        """Reads what has been added; all again where the file was written anew, as after a rollback."""
        tails: dict[bytes, deque[bytes]] = {
            mark: deque(maxlen=TREND_STEPS if mark == _STEP else 1) for mark in (_STEP, _HELD_OUT, _INVALID, b"")
        }
        try:
            with open(self.path, "rb") as file:
                about = self.path.stat()
                if about.st_ino != self._inode or about.st_size < self._read_bytes:
                    self._forget()
                    self._read_bytes, self._inode = 0, about.st_ino
                file.seek(self._read_bytes)
                for text in file:
                    if not text.endswith(b"\n"):
                        break  # it is being written
                    self._read_bytes += len(text)
                    self._read_lines += 1
                    if not _looks_whole(text):
                        self.unread.add(self._read_lines)
                        continue
                    tails[b""].append(text)
                    if _EVENT in text:
                        self._take_event(_parsed(text))
                    else:
                        sort = next((mark for mark in (_STEP, _HELD_OUT, _INVALID) if mark in text), b"")
                        tails[sort].append(text)
        except OSError as error:
            raise InputError(self.path, f"can't be read ({error.strerror})", "check its permissions") from None
        self.steps += [line for line in map(_parsed, tails[_STEP]) if line]
        self.held_out, self.invalid, self.last = (
            next((line for line in map(_parsed, tails[mark]) if line), before)
            for mark, before in ((_HELD_OUT, self.held_out), (_INVALID, self.invalid), (b"", self.last))
        )
        self.time = self.last.get("time", self.time)

    def _take_event(self, line: dict[str, Any]) -> None:
        name = line.get("event")
        self.counts[name] += name is not None
        if name == "started":
            self.plan = line
        elif name == "checkpoint":
            self.checkpoint = line
        elif name in _SHOWN:
            self.events.append(line)


def _parsed(text: bytes) -> dict[str, Any]:
    """A line; empty where it is none: of a run that was killed while it wrote, and started again."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else {}


def _looks_whole(text: bytes) -> bool:
    """Whether a line is a JSON object as far as its ends show; or blank, which tells nothing and hides nothing."""
    bare = text.strip()
    return not bare or (bare.startswith(b"{") and bare.endswith(b"}"))


@dataclass
class Measured:
    """The lines of a run's metrics that tell of steps and held-out losses, and those that can't be read."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    unread: Unread = field(default_factory=Unread)


def read_measured(path: Path) -> Measured:
    """Reads a run's metrics up to the last whole line; OSError where there are none."""
    found = Measured()
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                break  # it is being written
            is_marked = any(mark in text for mark in (_STEP, _HELD_OUT))
            line = _parsed(text) if is_marked else {}
            if line:
                found.lines.append(line)
            elif is_marked or not _looks_whole(text):
                found.unread.add(number)
    return found


def has_ended(run: Path) -> bool:
    """Whether a run has come to the end of its recipe; not where it was asked to stop, or has not begun."""
    return (run / METRICS).is_file() and RunLines(run).end == ENDED


def runs_in(folders: list[Path]) -> list[RunLines]:
    """The runs that are named, or that lie right below a folder that is none.

    Raises InputError for a folder of neither kind.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(folder, "no such folder", "name a run folder, or a folder of them")
        found += map(RunLines, run_folders(folder) or [folder])
    return found


def run_folders(folder: Path) -> list[Path]:
    """The folder itself where it is a run, else the runs right below it, by name."""
    if (folder / METRICS).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{METRICS}"))

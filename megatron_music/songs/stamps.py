"""Times in lyrics: the stamps of LRC in every spelling that programs and people use.

| written | read as |
| --- | --- |
| `[1:02]`, `[01:02.5]`, `[01:02.50]`, `[01:02.500]`, `[100:02.00]` | minutes, seconds and a fraction |
| `[01:02,50]`, `[01:02:50]` | the same: a comma or a colon before the fraction |
| `[00:01:02.50]`, `[00:01:02:50]` | hours, minutes, seconds and a fraction |
| `[00:01:02]` | minutes, seconds, hundredths; or hours, minutes, seconds, see ``have_hours`` |
| `[ 01:02.50 ]`, `[01 : 02.50]`, `【01：02．50】` | blanks and full-width signs do not matter |
| `[01:02.50-1]` | a number behind the time counts lines, and does not matter |
| `[01:02.50 --> 01:05.00]`, `[01:02.50-01:05.00]` | from and to |
| `<01:02.50>` | the time of a word |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

OPEN, CLOSE = "[【［〔", "]】］〕"
_BRACKETS = re.escape(OPEN + CLOSE)
BRACKET = re.compile(rf"[{re.escape(OPEN)}]([^{_BRACKETS}\n]{{0,200}})[{re.escape(CLOSE)}]|<(\s*\d[^<>\n]{{0,200}})>")
"""What stands in brackets, if it is short; or in angle ones, where it starts with a digit."""
FASTEST_LINES_S = 1.0
"""Nobody sings lines that follow each other, in the mean, faster than this."""
_TIME = r"\s*(\d{1,3})\s*[:：]\s*(\d{1,2})\s*(?:[:：]\s*(\d{1,2})\s*)?(?:[.,:：．，]\s*(\d{0,6})\s*)?"
_STAMP = re.compile(rf"{_TIME}(?:-\s*\d{{1,3}}\s*|(?:-+>|[-–—~～]){_TIME})?")
_LIKE_A_TIME = re.compile(r"[\s+-]*[\dxX?_-]+(?:\s*[.,:;：．，]\s*[\dxX?_-]+)+\s*")


@dataclass(frozen=True)
class Time:
    """A time as it is written: ``fields`` are minutes and seconds, or three of them; ``fraction`` its digits."""

    fields: tuple[int, ...]
    fraction: str

    @property
    def is_ambiguous(self) -> bool:
        """Whether three fields may be hours, minutes and seconds, or minutes, seconds and hundredths."""
        return len(self.fields) == 3 and not self.fraction

    @property
    def is_in_range(self) -> bool:
        """Whether minutes behind hours, and seconds, are below 60."""
        return all(field < 60 for field in self.fields[1 : 2 if self.is_ambiguous else 3])

    def seconds(self, with_hours: bool = False) -> float:
        """Seconds; ``with_hours`` says how ambiguous times are read."""
        fields, fraction = self.fields, self.fraction
        if self.is_ambiguous and not with_hours:
            fields, fraction = fields[:2], f"{fields[2]:02d}"
        whole_s = 0
        for field in fields:
            whole_s = 60 * whole_s + field
        return whole_s + float(f"0.{fraction or 0}")


@dataclass(frozen=True)
class Stamp:
    """Where a line, or a word, starts; and where it ends, which few files say."""

    start: Time
    end: Time | None = None


def read_stamp(content: str) -> Stamp | None:
    """The stamp whose brackets hold ``content``; None of anything else."""
    match = _STAMP.fullmatch(content)
    if match is None:
        return None
    return Stamp(_time(match.groups()[:4]), _time(match.groups()[4:]) if match[5] else None)


def without_stamps(line: str) -> str:
    """A line without its stamps."""
    without = BRACKET.sub(lambda match: match[0] if read_stamp(match[1] or match[2] or "") is None else "", line)
    return line if without == line else without.lstrip()


def is_like_a_time(content: str) -> bool:
    """Whether someone meant a time by it that can't be read: ``12:xx``, ``00.15.20``."""
    return bool(_LIKE_A_TIME.fullmatch(content))


def have_hours(times: Sequence[Time]) -> bool:
    """Whether the ambiguous ones among the times of a file's lines, in its order, have hours.

    They are read so that fewer lines go back in time; in a file where that says nothing, as hundredths, unless those
    of many lines would lie too close together: sixty times closer than hours.
    """
    ambiguous = [time for time in times if time.is_ambiguous]
    if not ambiguous or any(time.fields[2] > 59 for time in ambiguous):
        return False
    back, back_with_hours = (
        sum(after.seconds(hours) < before.seconds(hours) for before, after in pairwise(times))
        for hours in (False, True)
    )
    if back != back_with_hours:
        return back_with_hours < back
    seconds = sorted({time.seconds() for time in ambiguous})
    return len(seconds) > 1 and (seconds[-1] - seconds[0]) / (len(seconds) - 1) < FASTEST_LINES_S


def _time(groups: Sequence[str | None]) -> Time:
    *fields, fraction = groups
    if fields[2] is not None and len(fields[2]) == 1 and not fraction:
        fraction = fields.pop()  # tenths
    return Time(tuple(int(field) for field in fields if field is not None), fraction or "")

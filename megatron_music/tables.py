"""Tables for a terminal, and large numbers in few characters."""

from collections.abc import Sequence

_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells, the headings first, in columns of their widest cell; all but the first ``left`` are set right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        line = "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width) for at, (cell, width) in enumerate(cells)
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A length of time by its two largest units: 3d 4h, 2h 10m, 5m 07s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h" if days else f"{hours}h {minutes}m" if hours else f"{minutes}m {seconds:02d}s"


def numbers_in_words(numbers: Sequence[int], most: int = 8) -> str:
    """The first ``most`` numbers, and how many more there are: 0, 1, 2 and 5 more."""
    named = ", ".join(map(str, numbers[:most]))
    return named if len(numbers) <= most else f"{named} and {len(numbers) - most} more"


def short_count(count: float) -> str:
    """A count in four digits, in the units of a recipe's: 158.2B, 1.77T, 512."""
    for size, unit in _UNITS:
        # What rounds up to 1000 of a unit is written as 1 of the next.
        if count >= size * 0.99995:
            return f"{count / size:.4g}{unit}"
    return f"{count:.4g}"

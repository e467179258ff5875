"""Progress of long work, on standard error so that results can be piped."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")
console = Console(stderr=True, highlight=False)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yields ``items`` while drawing a progress bar; silent where standard error is not a terminal."""
    return rich_track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)

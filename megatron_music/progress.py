"""Progress of long work, on standard error so that results can be piped."""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.progress import track as rich_track

from megatron_music.terminal import silence

T = TypeVar("T")


class _Log(Console):
    """Standard error, whose reader may go without ending the work that it tells of."""

    def on_broken_pipe(self) -> None:
        """Nothing more is said; what a run measures is in its folder."""
        self.quiet = True
        silence(2)


# A log's lines are not cut, and what stands in brackets or between colons, as in names of files, is no markup.
console = _Log(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yields ``items`` while drawing a progress bar; silent where standard error is not a terminal."""
    return rich_track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps the bars and remarks of transformers off the terminal while the block loads a model with it.

    They name no file. Who loads tells what is missing.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def watch(count: Callable[[], int], description: str, total: int, every_seconds: float = 2.0) -> Iterator[None]:
    """Draws a progress bar of work that others do while the block waits for it; ``count`` says how much is done."""
    if not console.is_terminal:
        yield
        return
    ended = threading.Event()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(description, total=total)

        def look() -> None:
            while not ended.wait(every_seconds):
                progress.update(bar, completed=count())

        threading.Thread(target=look, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

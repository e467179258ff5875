"""The tasks that a build spec can name: each a file of this folder, with its options and its function."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_music.documents import lyrics_to_song, reference, residual, speech, text, unconditional
from megatron_music.documents.document import Document, DocumentContext
from megatron_music.errors import InputError
from megatron_music.recipe.fields import Strict
from megatron_music.recipe.recipe import parse_strict
from megatron_music.songs.song import Song


@dataclass(frozen=True)
class Task:
    """A way to make documents of a song.

    Attributes:
        options: the strict model of its options.
        documents: makes them; raises Rejected for a song that can't be used. All its chance comes from the generator.
        pack: gathers the documents of neighbouring songs into groups, each of which becomes one document of the corpus;
            None leaves every document on its own.
    """

    options: type[Strict]
    documents: Callable[[Song, DocumentContext, np.random.Generator, Any], list[Document]]
    pack: Callable[[Iterable[Document], DocumentContext, Any], Iterator[list[Document]]] | None = None


TASKS: dict[str, Task] = {
    "lyrics_to_song": Task(lyrics_to_song.LyricsOptions, lyrics_to_song.documents),
    "reference": Task(reference.ReferenceOptions, reference.documents),
    "unconditional": Task(unconditional.UnconditionalOptions, unconditional.documents),
    "speech": Task(speech.SpeechOptions, speech.documents, speech.pack),
    "residual": Task(residual.ResidualOptions, residual.documents),
    "text": Task(text.TextOptions, text.documents),
}


def find_task(name: str, where: str) -> Task:
    """The task of a name that was found at ``where``; raises InputError where there is none."""
    if name not in TASKS:
        raise InputError(where, f"{name!r} is not a task", f"choose from {', '.join(TASKS)}")
    return TASKS[name]


def task_options(task: Task, content: dict[str, Any], where: str) -> Any:
    """The options of a task from a mapping found at ``where``; raises InputError on unknown or wrong ones."""
    return parse_strict(task.options, content, where)

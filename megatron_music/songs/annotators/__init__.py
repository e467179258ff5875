"""Annotators: what can be found out about a song before it is encoded, one file each, each optional.

| name | reads | adds |
| --- | --- | --- |
| `separate` | mix audio | vocals and accompaniment audio |
| `structure` | mix and, if there, vocals audio | `Song.structure`: sections with labels |
| `tempo` | mix audio | `tempo_bpm` |
| `tags` | mix audio | `Song.genres`, `vocal_gender`, `vocal_timbre` |
| `language` | lyrics | `Song.language`, `language_confidence` |
| `transcribe` | vocals or mix audio | `transcript`: timed words, `transcript_language` |
| `align` | lyrics, transcript, structure | `Song.segments`, `lyrics_match` |

Names in lower case are fields of ``Song.extra``, which a manifest keeps as they are. What a song already carries stays,
unless the option ``overwrite=true`` is given. In this order each finds what it can use.
"""

import difflib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

from megatron_music.errors import InputError
from megatron_music.recipe.recipe import parse_strict
from megatron_music.songs.song import Song

_CLASSES = {
    "separate": "Separate",
    "structure": "Structure",
    "tempo": "Tempo",
    "tags": "Tags",
    "language": "Language",
    "transcribe": "Transcribe",
    "align": "Align",
}
ANNOTATORS: tuple[str, ...] = tuple(_CLASSES)


class Annotator(Protocol):
    """Finds out something about one song after another.

    Attributes:
        name: one of ``ANNOTATORS``.
    """

    name: str

    def annotate(self, song: Song, out: Path) -> Song:
        """A copy of the song with more fields or tracks; files that it makes lie below ``out``.

        Raises:
            Rejected: this song can't be used.
        """
        ...


def load_annotator(name: str, options: Mapping[str, str] | None = None, device: str = "cpu") -> Annotator:
    """Loads an annotator, with its model.

    Args:
        options: the fields of the annotator's ``Options``, as texts: ``{"weights": "FOLDER", "overwrite": "true"}``.
        device: a torch device, for those that are networks.

    Raises:
        InputError: the name or an option is not known, or a package or weights are missing.
    """
    if name not in ANNOTATORS:
        near = difflib.get_close_matches(name, ANNOTATORS, n=1)
        mend = f"did you mean {near[0]}?" if near else f"name one of {', '.join(ANNOTATORS)}"
        raise InputError(f"annotator {name!r}", "is not known", mend)
    annotator = getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])
    return annotator(parse_strict(annotator.Options, dict(options or {}), f"annotator {name}"), device)

"""The tags of a song as a document's header holds them, with further ones from fields of the manifest."""

import math
from typing import Any, Literal

import numpy as np

from megatron_music.recipe.fields import Strict
from megatron_music.songs.manifest import manifest_field
from megatron_music.songs.song import TAG_COMMAS, Rejected, Song, split_tags


class TagOptions(Strict):
    """Options of every task that writes tags.

    Attributes:
        tags: as the manifest has them, or shuffled and separated by spaces.
        tag_fields: further fields of the manifest whose values follow the tags, in this order, where a song has them:
            YuE's annealing adds ``[vocal_gender, vocal_timbre]`` and, as an option, ``tempo_bpm``, which reads
            ``120 bpm``. A value may be a text, a number, or a list of these; one that is among the tags already is not
            repeated.
    """

    tags: Literal["as_written", "shuffled"] = "as_written"
    tag_fields: list[str] = []


def tag_text(song: Song, rng: np.random.Generator, options: TagOptions) -> str:
    """The tags of a song as they are, or in random order and separated by spaces; those of ``tag_fields`` behind them.

    Raises Rejected for a field that can't be a tag.
    """
    tags = split_tags(song.genres)
    further = _further_tags(song, {tag.casefold() for tag in tags}, options.tag_fields)
    if options.tags == "shuffled":
        return " ".join([*(tags[index] for index in rng.permutation(len(tags))), *further])
    separator = " " if len(tags) > 1 and not TAG_COMMAS.search(song.genres) else ", "
    return separator.join([song.genres, *further] if tags else further) if further else song.genres


def _further_tags(song: Song, present: set[str], fields: list[str]) -> list[str]:
    further = []
    for name in fields:
        value = manifest_field(song, name)
        for item in value if isinstance(value, list) else [value]:
            tag = _tag(item, name)
            if tag and tag.casefold() not in present:
                present.add(tag.casefold())
                further.append(tag)
    return further


def _tag(value: Any, name: str) -> str:
    """One value as a tag; the empty string where there is none."""
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Rejected("not_utf8", f"{name} holds half of a surrogate pair", name) from None
        return " ".join(value.split())
    # Compared before anything else is done with it: JSON spells integers that no float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise Rejected("wrong_type", f"{name} is {repr(value)[:40]}, not a text or a number", name)
    return f"{math.floor(value + 0.5)} bpm" if name.endswith("_bpm") else f"{value:g}"

"""In what two recipes differ, field by field."""

from collections.abc import Iterator
from typing import Any

from megatron_music.recipe.recipe import Recipe


def differences(first: Recipe, second: Recipe) -> dict[str, tuple[Any, Any]]:
    """Both values of each field that differs, by its path: ``checkpoints.keep``, ``phases.annealing.tokens``.

    Items of a list go by their name or number; None stands for what a recipe lacks.
    """
    ours, theirs = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (first, second))
    values = {name: (ours.get(name), theirs.get(name)) for name in ours | theirs}
    return {name: (one, other) for name, (one, other) in values.items() if one != other}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in nested mappings and lists, by their path."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            key = item.get("name", index) if isinstance(item, dict) else index
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, value

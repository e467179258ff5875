"""Fields in which recipes differ go by the names that ``--set`` takes them by, or nearly so."""

from pathlib import Path

from megatron_music.recipe.differences import differences
from megatron_music.recipe.recipe import Recipe


def test_fields_go_by_their_paths_and_what_one_lacks_is_none(repository: Path):
    path = repository / "examples" / "quickstart.yaml"
    recipe = Recipe.load(path)
    assert differences(recipe, Recipe.load(path)) == {}
    phase, *others = recipe.phases
    watch = recipe.watch.model_copy(update={"invalid_tokens": None})
    changed = {"precision": "bf16", "phases": [phase.model_copy(update={"tokens": 7}), *others], "watch": watch}
    found = differences(recipe, recipe.model_copy(update=changed))
    asked = recipe.watch.invalid_tokens.model_dump(mode="json")
    assert found == {
        "precision": (recipe.precision, "bf16"),
        f"phases.{phase.name}.tokens": (phase.tokens, 7),
        **{f"watch.invalid_tokens.{name}": (value, None) for name, value in asked.items()},
    }

"""The verb `generate` as the tests of several rooms ask for it: all its options by name."""

from dataclasses import fields
from pathlib import Path

from megatron_music.generation import generate as verb
from megatron_music.generation.song import Models


def generate(out: Path, **asked) -> list[Path]:
    """Sings what the options ask for; those of the models, the prompt and the output may stand in any order."""
    models, prompt = (
        kind(**{field.name: asked.pop(field.name) for field in fields(kind) if field.name in asked})
        for kind in (Models, verb.Prompt)
    )
    return verb.generate(out, models, prompt, **asked)

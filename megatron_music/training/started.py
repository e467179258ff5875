"""The first line of a run's metrics: what the run is, and its plan, so that ``status`` needs no other file."""

import socket
from typing import TYPE_CHECKING

import torch

from megatron_music.corpus.stream import SampleStream
from megatron_music.recipe.phases import PhaseSpan

if TYPE_CHECKING:
    from megatron_music.training.loop import Trainer


def plan_of(trainer: "Trainer") -> dict[str, object]:
    """Name, processes, layout, machine, and the phases with their tokens by source."""
    recipe, engine = trainer.recipe, trainer.engine
    on_gpu = engine.device.type == "cuda"
    return {
        "recipe": recipe.name,
        "processes": torch.distributed.get_world_size(),
        "layout": recipe.layout.model_dump(mode="json"),
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "steps": trainer.last_step,
        "total_tokens": trainer.spans[-1].last_token,
        "phases": [_phase(trainer.stream, span) for span in trainer.spans],
    }


def _phase(stream: SampleStream, span: PhaseSpan) -> dict[str, object]:
    before, after = stream.consumed(span.first_sequence), stream.consumed(span.last_sequence)
    return {
        "name": span.phase.name,
        "last_step": span.last_step,
        "last_token": span.last_token,
        "sources": {name: after[name] - before[name] for name in after if after[name] > before[name]},
    }

"""Reading a run's metrics.jsonl in tests."""

import json
from pathlib import Path

from megatron_music.training.metrics_log import is_of_the_machine


def measured(metrics: Path) -> list[dict]:
    """All lines but events, with all but what depends on the machine."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not is_of_the_machine(name)}
        for line in lines
        if "event" not in line
    ]

"""A preflight of which one process multiplies wrongly."""

import os
from pathlib import Path

from megatron_music.cluster import preflight


def multiply_wrongly_on_rank_1(folder: Path) -> None:
    """The whole preflight."""
    if os.environ["RANK"] == "1":
        preflight.multiply = lambda a, b: (a @ b).index_fill_(0, a.new_zeros(1).long(), 99)
    preflight.run_process(folder)

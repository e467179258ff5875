"""Processes that tell what they were given."""

import json
import os
import sys
from pathlib import Path

import torch

NAMES = "RANK", "WORLD_SIZE", "LOCAL_RANK", "COLOUR", "OMP_NUM_THREADS"


def tell(folder: Path) -> None:
    """Writes this process' variables and threads to a file, and its rank to both outputs."""
    told = {name: os.environ.get(name) for name in NAMES} | {"threads": torch.get_num_threads()}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(told))
    print(f"out of {os.environ['RANK']}")
    print(f"error of {os.environ['RANK']}", file=sys.stderr)

"""A process that fails while the others wait for it."""

import os
import threading

from megatron_music.errors import InputError


def fail_on_rank_1(kind: str) -> None:
    """Raises on rank 1; rank 0 waits without end."""
    if os.environ["RANK"] == "1":
        raise InputError("recipe.yaml: seed", "is odd", "make it even") if kind == "input" else KeyError("lost")
    threading.Event().wait()

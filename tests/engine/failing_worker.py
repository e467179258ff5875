"""A process that fails while the others wait for it."""

import os
import threading

from megatron_music.errors import InputError

NCCL = """NCCL error in: NCCLUtils.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for details)
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-5Vu9gk (size 9637888), error: No space left on device (28)"""
FAULTS = {
    "input": InputError("recipe.yaml: seed", "is odd", "make it even"),
    "shared memory": RuntimeError(NCCL),
    "other": KeyError("lost"),
}


def fail_on_rank_1(kind: str) -> None:
    """Raises on rank 1; rank 0 waits without end."""
    if os.environ["RANK"] == "1":
        raise FAULTS[kind]
    threading.Event().wait()

"""One task of a SLURM job: ``python -m megatron_music.corpus.slurm_task EXECUTOR``, as ``executors`` writes it."""

import os
import sys

import dill

from megatron_music.errors import InputError
from megatron_music.parallel import limit_threads


def main() -> None:
    """Runs the part of the pickled executor that SLURM's variables name; bad input ends it with one line."""
    limit_threads(int(os.environ.get("SLURM_CPUS_PER_TASK") or 1))
    with open(sys.argv[1], "rb") as file:
        executor = dill.load(file)
    try:
        executor.run()
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

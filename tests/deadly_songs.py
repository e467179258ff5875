"""Measuring of songs that kill whoever measures them; a module of its own, which a worker reads quickly."""

import os
import signal

from megatron_music.evaluation.songs import song


def measure(job: song.Job) -> song.Found:
    """Measures a song; one named ``deadly`` kills its process unless a file ``spared`` lies beside it."""
    if job.song.name == "deadly" and not (job.song.folder / "spared").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return song.measure(job)

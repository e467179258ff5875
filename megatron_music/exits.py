"""How a run ends when it is not done: the exit codes of ``train``, and the exceptions that carry them."""

import enum


class ExitCode(enum.IntEnum):
    """What the command line exits with; docs/cluster.md, of the gate docs/predictor.md, say what to do about each."""

    DONE = 0
    FAILED = 1
    """A fault of the program or the machine, with its traceback; a full disk."""
    BAD_INPUT = 2
    BAD_MACHINE = 3
    """``preflight`` found a GPU, link or file system that is not fit."""
    NO_GO = 4
    """``predict gate --check``: the run is no-go."""
    NOT_YET = 5
    """``predict gate --check``: it can't be told yet."""
    STOPPED = 75
    """It was asked to stop and wrote a checkpoint: start it again (EX_TEMPFAIL of sysexits.h)."""
    HUNG = 76
    LOST = 77
    """A process was killed, or its machine went away."""
    INTERRUPTED = 130
    """Ctrl-C twice: it left at once."""


class RunEnded(Exception):
    """A run that ended before it was done, told in one line; the command line exits with its ``code``."""

    code = ExitCode.FAILED


class Stopped(RunEnded):
    """All processes have stopped after the same step, as they were asked to."""

    code = ExitCode.STOPPED


class Hung(RunEnded):
    """No process went on; their stacks are in the run folder."""

    code = ExitCode.HUNG


class Lost(RunEnded):
    """A process ended without a word."""

    code = ExitCode.LOST

"""Standard output and error as terminals, pipes and files have them: of any encoding, and closed before the end."""

import io
import os
import sys

_ENCODING = "PYTHONIOENCODING"


def take_any_text() -> None:
    r"""Writes what the encoding of standard output lacks as ``\u97f3``, in this process and in those that it starts.

    Names of songs and files are in all scripts, and a terminal of ISO-8859-1 or a job with ``LC_ALL=C`` has few. It is
    what Python does for standard error. Errors that the user names in PYTHONIOENCODING stay.
    """
    encoding, _, errors = os.environ.get(_ENCODING, "").partition(":")
    if not errors:
        errors = "backslashreplace"
        os.environ[_ENCODING] = f"{encoding}:{errors}"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=errors)


def signs(wanted: str, plain: str) -> str:
    """``wanted`` where standard output has all of them, else ``plain``, as many in ASCII."""
    try:
        wanted.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return plain
    return wanted


def write_all() -> None:
    """Writes what is still buffered for standard output; nothing is said where its reader has gone, as `head` does."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        silence(1)


def silence(descriptor: int) -> None:
    """What is written to standard output (1) or error (2) from now on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)

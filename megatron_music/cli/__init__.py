"""The command line: one command a verb, no logic."""

import errno
import sys

import typer

from megatron_music.caches import keep_caches_somewhere
from megatron_music.cli import data, measured, predicted, runs, trained
from megatron_music.cli.app import app
from megatron_music.errors import InputError
from megatron_music.exits import ExitCode, RunEnded
from megatron_music.terminal import take_any_text, write_all

# Imported for their verbs, which stand in `--help` in this order.
__all__ = ["app", "data", "main", "measured", "predicted", "runs", "trained"]


def main() -> None:
    """Runs the command line; what ends it with which status stands in ``exits``."""
    take_any_text()
    keep_caches_somewhere()
    try:
        app()
    except InputError as error:
        if "--debug" in sys.argv:
            raise
        if not error.told_by_another:
            typer.echo(f"error: {error}", err=True)
        sys.exit(ExitCode.BAD_INPUT)
    except RunEnded as error:
        typer.echo(error, err=True)
        sys.exit(error.code)
    except OSError as error:
        if "--debug" in sys.argv:
            raise
        where = f"{error.filename}: " if error.filename else ""
        mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend it"
        typer.echo(f"error: {where}{error.strerror or error}; {mend} and run again", err=True)
        sys.exit(ExitCode.FAILED)
    finally:
        write_all()

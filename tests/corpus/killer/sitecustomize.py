"""Ends a process, or the one that started it, at a chosen write of a file: with this folder in ``PYTHONPATH``, in every
Python process, also in workers and jobs.

``KILL_AT`` is JSON: ``file`` is a pattern that the name of a finished file has to match, ``count`` says the how manieth
of a process it is, ``after`` whether its new name is in place already, ``victim`` is ``self``, ``parent`` or ``group``,
``signal`` a name, and ``once`` a file that is made so that it happens a single time.
"""

import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path

_replace = os.replace


def _install(file: str, count: int, after: bool, victim: str, once: str, signal_name: str) -> None:
    numbers = itertools.count(1)
    if signal_name == "SIGINT":
        # A shell that starts a command in the background lets it, and all that it starts, ignore this one.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def strike() -> None:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        number = getattr(signal, signal_name)
        parent = multiprocessing.parent_process()
        if victim == "group":
            os.killpg(0, number)
        else:
            os.kill(parent.pid if victim == "parent" and parent else os.getpid(), number)
        threading.Event().wait()

    def replace(source, target, **options):
        struck = re.fullmatch(file, Path(target).name) and next(numbers) == count
        if struck and not after:
            strike()
        _replace(source, target, **options)
        if struck and after:
            strike()

    os.replace = replace


if "KILL_AT" in os.environ:
    _install(**json.loads(os.environ["KILL_AT"]))

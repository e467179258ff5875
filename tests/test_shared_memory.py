"""A /dev/shm that can't be used is named, with the mend; in namespaces of mounts of their own."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from megatron_music.shared_memory import shared_memory

ALONE = [shutil.which("unshare") or "unshare", "--mount"]
FULL = "mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
READ_ONLY = "mount -t tmpfs -o ro none /dev/shm"
SMALL = "mount -t tmpfs -o size=64k none /dev/shm"
CAUGHT = """
from megatron_music.errors import InputError
try:
    {work}
except InputError as error:
    print(error)
"""
WORKERS = "from megatron_music.parallel import Workers; print(*Workers(2).map(abs, [-1, 2]))"
LAUNCH = "from megatron_music.engine.processes import launch; launch(abs, 1)"
ROOM = "give it 1 GB or more: `docker run --shm-size=1g`, or `mount -o remount,size=1g /dev/shm`"
WRITABLE = "mount a tmpfs there that all may write: `docker run --shm-size=1g` has one"


def within(mount, work):
    """What ``work`` prints, or its InputError, after ``mount`` in a namespace that ends with it."""
    if subprocess.run([*ALONE, "sh", "-c", SMALL], capture_output=True).returncode:
        pytest.skip("no right to mount")
    command = [*ALONE, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", CAUGHT.format(work=work)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ).stdout


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        (FULL, f"/dev/shm: can't be used by processes (No space left on device); {ROOM}\n"),
        (READ_ONLY, f"/dev/shm: can't be used by processes (Read-only file system); {WRITABLE}\n"),
        (SMALL, "1 2\n"),
    ],
)
def test_workers(mount, said):
    assert within(mount, WORKERS) == said


def test_processes_of_a_run():
    assert within(READ_ONLY, LAUNCH) == f"/dev/shm: can't be used by processes (Read-only file system); {WRITABLE}\n"


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, "No space left on device", "somewhere"), OSError(errno.EMFILE, "Too many open files")],
    ids=["a file's", "of files that are open"],
)
def test_other_faults_are_told_as_they_are(fault):
    with pytest.raises(OSError) as caught, shared_memory():
        raise fault
    assert caught.value is fault

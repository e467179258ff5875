"""Shared memory: what processes wait and count with lies in /dev/shm, which containers make small or leave out."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_music.errors import InputError

SHARED_MEMORY = "/dev/shm"
_OF_THE_PROCESS = errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM
"""Too many open files or processes, or too little memory: none of it is mended in /dev/shm."""


@contextmanager
def shared_memory() -> Iterator[None]:
    """Raises InputError, naming /dev/shm, where what the block makes in it (semaphores of multiprocessing) can't be."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno in _OF_THE_PROCESS:
            raise
        raise shared_memory_fault(os.strerror(error.errno)) from None


def shared_memory_fault(reason: str) -> InputError:
    """What to do about a /dev/shm that is full, read-only or missing."""
    if reason == os.strerror(errno.ENOSPC):
        mend = "give it 1 GB or more: `docker run --shm-size=1g`, or `mount -o remount,size=1g /dev/shm`"
    else:
        mend = "mount a tmpfs there that all may write: `docker run --shm-size=1g` has one"
    return InputError(SHARED_MEMORY, f"can't be used by processes ({reason})", mend)

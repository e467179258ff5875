"""What annotators share: their options, packages, weights, the audio that they hear, and names of files."""

import hashlib
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from megatron_music.audio.files import read_audio
from megatron_music.errors import InputError
from megatron_music.recipe.fields import Strict
from megatron_music.songs.song import Rejected, Song


class Options(Strict):
    """Options of every annotator.

    Attributes:
        overwrite: whether what a song already carries is found out again.
    """

    overwrite: bool = False


class NetworkOptions(Options):
    """Options of annotators that are networks.

    Attributes:
        weights: a file or folder; or a name on the hub, the only case in which anything is downloaded.
    """

    weights: str | None = None


def import_package(annotator: str, module: str, package: str, extra: str = "corpus") -> ModuleType:
    """Imports what an annotator needs; raises InputError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        found = f"needs the package {package}, which can't be imported ({error})"
        raise InputError(f"annotator {annotator}", found, f"pip install 'megatron-music[{extra}]'") from None


def needed_weights(annotator: str, weights: str | None, kinds: str, example: str) -> str:
    """The weights that were named; raises InputError where none were."""
    if weights is None:
        mend = f"name {kinds} with the option weights=PATH, or a hub name, such as weights={example}"
        raise InputError(f"annotator {annotator}", "needs weights and none were named", mend)
    return weights


def hear(song: Song, track: str, sample_rate: int, mono: bool = True) -> np.ndarray:
    """A track's samples as ``read_audio`` gives them; raises Rejected where they can't be had."""
    path = song.audio_path(track)
    try:
        return read_audio(path, sample_rate, mono)
    except InputError as error:
        raise Rejected("audio_unreadable" if path.is_file() else "audio_missing", str(error)) from None


def file_name(song_id: str, *made_from: Any) -> str:
    """A name for a song's files: readable, safe in any file system, and another one for another song or making.

    ``ab/my_song-ab12cd34ef56ab78``: two digits in front keep folders small where songs are many.
    """
    digest = hashlib.sha256(repr((song_id, *made_from)).encode("utf-8", "backslashreplace")).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", song_id).strip("_")[:60]
    return f"{digest[:2]}/{readable}-{digest}" if readable else f"{digest[:2]}/{digest}"


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and modification time, by which a change of a file is seen; zeros where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns

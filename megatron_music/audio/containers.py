"""Where the audio of a file lies, and whether its header tells the right length; nothing is decoded to find out.

Headers are written before the audio is. So a recorder that was killed, or wrote to a pipe, leaves 0 or the largest
number there is; 32 bits wrap at 4 GiB; what was cut on its way announces more than there is; and files that were put
one behind the other have a header each.
"""

import io
import os
import re
import struct
from itertools import pairwise
from pathlib import Path

import soundfile

from megatron_music.audio.chunks import MAGICS, chunked_part
from megatron_music.audio.mpeg import mpeg_part
from megatron_music.audio.parts import FileBytes, Part, behind_id3

_PAGE = struct.Struct("<4sBBqIIIB")
"""Sync, version, flags, position, serial number, sequence number, checksum, number of segments."""
_FIRST_PAGE, _ANY_PAGE = re.compile(rb"OggS\0[\2\6]"), re.compile(rb"OggS\0[\0-\7]")
_MOST_PAGE_BYTES, _SEARCHED_BYTES = 65_307, 1 << 22
_FLAC_BEHIND_BYTES = 1 << 14


def audio_parts(path: str | os.PathLike, to_read: bool) -> list[Part]:
    """The recordings that a file holds one behind the other: nearly always one.

    Args:
        to_read: whether the file will be read, so that all of it may be looked at here too.

    Raises:
        OSError: the file can't be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        content = FileBytes(file)
        start = behind_id3(content, 0)
        magic = content[start : start + 4]
        if magic in MAGICS:
            return [chunked_part(path, content, start)]
        if magic == b"OggS":
            return _ogg_links(path, content)
        if magic == b"fLaC":
            return [Part(path, trusted=_flac_is_whole(path, content, start))]
        # libsndfile would take what starts so for an MP3, and libmpg123 write about it to the terminal.
        like_mp3 = start > 0 or magic[:1] == b"\xff"
        return [mpeg_part(path, content, start, to_read) or Part(path, trusted=not like_mp3)]


def _flac_is_whole(path: Path, content: FileBytes, start: int) -> bool:
    """Whether the last sample that is announced is there, at the end of the file, and no second file in it."""
    try:
        with open(path, "rb") as raw, soundfile.SoundFile(raw) as file:
            file.seek(-1, io.SEEK_END)
            if len(file.read(1)) < 1 or content.size - raw.tell() > _FLAC_BEHIND_BYTES:
                return False
            samples = file.frames
    except (soundfile.SoundFileError, OSError, ValueError):
        return False
    stream_info = content[start + 8 : start + 18]
    least_block, most_bytes = int.from_bytes(stream_info[:2]), int.from_bytes(stream_info[7:10])
    audio, is_last = start + 4, False
    while not is_last and len(header := content[audio : audio + 4]) == 4:
        audio, is_last = audio + 4 + int.from_bytes(header[1:]), header[0] >= 128
    # Of two files of one length, the seek may end in the second; but so many bytes the frames of one can't have.
    most = (samples // max(least_block, 1) + 1) * most_bytes + _FLAC_BEHIND_BYTES
    return most_bytes == 0 or content.size - audio <= most


def _ogg_links(path: Path, content: FileBytes) -> list[Part]:
    """The links of a chain of Ogg streams, such as a recording of net radio, one for each song."""
    if _is_one_link(content):
        return [Part(path)]
    starts, behind = [], -1
    for place in range(0, content.size, _SEARCHED_BYTES):
        searched = content[place : place + _SEARCHED_BYTES + 5]
        for match in _FIRST_PAGE.finditer(searched):
            at = place + match.start()
            # Streams side by side, as of a film, start with a page each, one after the other.
            if at != behind:
                starts.append(at)
            behind = at + _page_bytes(content[at : at + _MOST_PAGE_BYTES])
    if len(starts) < 2:
        return [Part(path)]
    return [Part(path, start, end) for start, end in pairwise([*starts, content.size])]


def _is_one_link(content: FileBytes) -> bool:
    """Whether the last page is of a stream that the file starts with, and counts pages enough for the file's size."""
    front, serials, at = content[: 2 * _MOST_PAGE_BYTES], set(), 0
    while _FIRST_PAGE.match(front, at) and len(front) >= at + _PAGE.size:
        serials.add(_PAGE.unpack_from(front, at)[4])
        at += _page_bytes(front[at:])
    back = content[content.size - _MOST_PAGE_BYTES :]
    pages = [match.start() for match in _ANY_PAGE.finditer(back) if match.start() + _PAGE.size <= len(back)]
    if not pages:
        return False
    serial, sequence = _PAGE.unpack_from(back, pages[-1])[4:6]
    largest = max(end - start for start, end in pairwise([*pages, len(back)]))
    return serial in serials and (sequence + 1) * largest >= content.size


def _page_bytes(page: bytes) -> int:
    segments = page[_PAGE.size - 1] if len(page) >= _PAGE.size else 0
    return _PAGE.size + segments + sum(page[_PAGE.size : _PAGE.size + segments])

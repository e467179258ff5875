"""Frames of an MP3, and whether its Xing or Info frame tells how many there are."""

import re
import struct
from pathlib import Path

from megatron_music.audio.parts import FileBytes, Part

_KBIT_S = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
)
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""How a frame of layer III starts."""
_OTHER_LAYERS = re.compile(rb"\xff[\xf4-\xf7\xfc\xfd]")
_SEARCHED_BYTES = 1 << 16
_MOST_SIDE_INFO_BYTES = 44
_FRAME_BYTES = (24, 1441)
_QUIET_SHARE = 0.005


def mpeg_part(path: Path, content: FileBytes, start: int, to_read: bool) -> Part | None:
    """The audio of an MP3 (or MP2) whose tags in front end at ``start``; None where there are no frames.

    A Xing or Info frame is trusted where its count of bytes ends in the file, with no frame behind, as there is where
    files were put one behind the other. ``to_read`` also looks for gaps between the frames; for that, all is read.
    """
    front = content[start : start + _SEARCHED_BYTES]
    at = _find_frame(front)
    if at is None:
        return Part(path, trusted=False, announces=False) if _OTHER_LAYERS.match(front) else None
    start += at
    frames, audio_bytes = _announced(front[at:])
    end = start + audio_bytes
    ends_here = frames > 0 and _find_frame(content[end:]) is None
    if (
        ends_here
        and end <= content.size
        and _FRAME_BYTES[0] <= audio_bytes / frames <= _FRAME_BYTES[1]
        and not (to_read and _has_gap(content[start:end]))
    ):
        # Much before or behind the frames, and gaps between them, make libmpg123 write to the terminal.
        much_behind = content.size - end > _QUIET_SHARE * audio_bytes
        return Part(path, start if at else 0, end if much_behind else None, tags_outside=at > 0 or much_behind)
    return Part(path, start, _without_tags(content), trusted=False, announces=ends_here, tags_outside=True)


def _find_frame(data: bytes) -> int | None:
    """Where the first frame starts that has another behind it."""
    for match in _SYNC.finditer(data):
        length = _frame_bytes(data, match.start())
        if length and _frame_bytes(data, match.start() + length):
            return match.start()
    return None


def _frame_bytes(data: bytes, at: int) -> int:
    """The length of the frame whose header is at ``at``; 0 where none is."""
    if not _SYNC.match(data, at) or at + 4 > len(data):
        return 0
    version, kbit_s, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if kbit_s in (0, 15) or rate == 3:
        return 0
    bits = 1000 * _KBIT_S[version != 3][kbit_s] * (1152 if version == 3 else 576)
    return bits // 8 // _RATES_HZ[version][rate] + (data[at + 2] >> 1 & 1)


def _announced(frame: bytes) -> tuple[int, int]:
    """Frames and bytes that a Xing or Info frame tells; 0 for what it does not tell."""
    found = re.search(rb"(?:Xing|Info)(.{12})", frame[: _MOST_SIDE_INFO_BYTES + 16], re.DOTALL)
    flags, frames, audio_bytes = struct.unpack(">III", found[1]) if found else (0, 0, 0)
    return (frames, audio_bytes) if flags & 3 == 3 else (0, 0)


def _has_gap(data: bytes) -> bool:
    at = 0
    while at < len(data):
        length = _frame_bytes(data, at)
        if not length:
            return True
        at += length
    return False


def _without_tags(content: FileBytes) -> int:
    """Where the frames end at the latest: before an APE tag and an ID3v1 tag."""
    end = content.size
    if content[end - 128 : end - 125] == b"TAG":
        end -= 128
    footer = content[end - 32 : end]
    if footer[:8] == b"APETAGEX":
        tag_bytes, _, flags = struct.unpack("<III", footer[12:24])
        end -= tag_bytes + (32 if flags >> 31 else 0)
    return max(end, 0)

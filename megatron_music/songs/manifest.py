"""Manifests: JSON lines in the field names of YuE's finetuning data, one song each.

A line that is not a usable song becomes a Reject that names the rule and the line; it never raises.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from megatron_music.files import atomic_path
from megatron_music.songs import values
from megatron_music.songs.manifest_file import Place, find_place, open_manifest, song_lines
from megatron_music.songs.song import Reject, Rejected, Segment, Song, rebase_reference

CODES_FIELDS = {"mix": "codec", "vocals": "vocals_codec", "accompaniment": "instrumental_codec"}
AUDIO_FIELDS = {"mix": "audio", "vocals": "vocals_audio", "accompaniment": "instrumental_audio"}
LYRICS, SEGMENTS = "splitted_lyrics", "segmented_lyrics"
KNOWN_FIELDS = {
    "id", "audio_length_in_sec", "msa", "genres", "language", "text", LYRICS,
    *CODES_FIELDS.values(), *AUDIO_FIELDS.values(),
}  # fmt: skip
SEGMENT_FIELDS = {"codec_frame_start", "codec_frame_end", "line_content"}


def read_manifest(path: str | Path) -> Iterator[Song | Reject]:
    """Songs of a manifest in file order, and a Reject for every line that is not one; empty lines count as nothing.

    The first of several songs with one id is kept. Raises InputError, at the call, where the file can't be opened.
    """
    file = open_manifest(path)
    return read_songs(file, Path(path), place_of(path).folder)


def place_of(manifest: str | Path) -> Place:
    """Where a manifest's codes and audio are, see ``manifest_file``; raises InputError where it can't be opened."""
    return find_place(manifest, [*CODES_FIELDS.values(), *AUDIO_FIELDS.values()])


def read_songs(file: BinaryIO, path: Path, folder: Path, first_line: int = 1) -> Iterator[Song | Reject]:
    """What ``read_manifest`` gives of a file that is open at the start of a line; it is closed at the end.

    Raises nothing. Of songs with one id, only those from ``first_line`` on are known.

    Args:
        folder: to which paths are relative, see ``place_of``.
    """
    seen: set[str] = set()
    with file:
        for number, _, line in song_lines(file, first_line):
            id = ""
            try:
                content = values.parse_line(line)
                if content.get("id") is None:
                    raise Rejected("missing_id", "the line has no id")
                id = values.song_id(content["id"])
                song = _song(content, id, folder)
                if id in seen:
                    raise Rejected("duplicate_id", f"another line above has the id {id}", id)
                seen.add(id)
                yield song
            except Rejected as rejected:
                yield rejected.reject(id, f"{path}: line {number}")


def write_manifest(path: str | Path, songs: Iterable[Song]) -> None:
    """Writes songs as a manifest, whole or not at all; their relative paths are made relative to its folder."""
    path = Path(path)
    with atomic_path(path) as temporary:
        # A lone surrogate, which JSON can spell but UTF-8 can't, comes out as the escape that JSON spells it with.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for song in songs:
                file.write(json.dumps(_content(song, path.parent), ensure_ascii=False) + "\n")


def manifest_field(song: Song, name: str) -> Any:
    """The value of a field of a song's line, ``scores.quality`` of one within another; None where it is not there."""
    known = {
        "id": song.id,
        "audio_length_in_sec": song.duration_s,
        "genres": song.genres or None,
        "language": song.language,
        "text": song.text or None,
    }
    if name in known:
        return known[name]
    value: Any = song.extra
    for part in [name] if name in song.extra else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _song(content: dict[str, Any], id: str, folder: Path) -> Song:
    lyrics = values.items(content.get(LYRICS), dict, "an object", LYRICS)
    segments = values.items(lyrics.get(SEGMENTS), list, "a list", f"{LYRICS}.{SEGMENTS}")
    extra = {name: value for name, value in content.items() if name not in KNOWN_FIELDS}
    further_lyrics = {name: value for name, value in lyrics.items() if name != SEGMENTS}
    if further_lyrics:
        extra[LYRICS] = further_lyrics
    return Song(
        id=id,
        codes=_references(content, CODES_FIELDS),
        audio=_references(content, AUDIO_FIELDS),
        duration_s=_duration(content),
        genres=_optional_text(content, "genres") or "",
        segments=[_segment(segment, index) for index, segment in enumerate(segments)],
        structure=_structure(content),
        language=_optional_text(content, "language"),
        text=_optional_text(content, "text") or "",
        folder=folder,
        extra=extra,
    )


def _references(content: dict[str, Any], fields: dict[str, str]) -> dict[str, str]:
    found = {track: _optional_text(content, name) for track, name in fields.items()}
    return {track: reference for track, reference in found.items() if reference}


def _duration(content: dict[str, Any]) -> float | None:
    name = "audio_length_in_sec"
    if content.get(name) in (None, ""):
        return None
    duration_s = float(values.number(content[name], name))
    if duration_s <= 0:
        raise Rejected("duration", f"{name} is {duration_s:g}, not above 0", duration_s)
    return duration_s


def _structure(content: dict[str, Any]) -> list[dict[str, Any]]:
    sections = values.items(content.get("msa"), list, "a list", "msa")
    return [_section(section, f"msa[{index}]") for index, section in enumerate(sections)]


def _section(section: Any, where: str) -> dict[str, Any]:
    if not isinstance(section, dict):
        raise Rejected("wrong_type", f"{where} is {values.shown(section)}, not an object", values.shown(section))
    for name in ("start", "end", "label"):
        if name not in section:
            raise Rejected("missing_field", f"{where} has no {name}", name)
    values.text(section["label"], f"{where}.label")
    start_s, end_s = (values.number(section[name], f"{where}.{name}") for name in ("start", "end"))
    if start_s > end_s:
        raise Rejected("structure", f"{where} ends at {end_s} s, before it starts at {start_s} s", end_s)
    return {**section, "start": start_s, "end": end_s}


def _segment(segment: Any, index: int) -> Segment:
    where = f"{SEGMENTS}[{index}]"
    if not isinstance(segment, dict):
        raise Rejected("wrong_type", f"{where} is {values.shown(segment)}, not an object", values.shown(segment))
    for name in sorted(SEGMENT_FIELDS):
        if segment.get(name) is None:
            raise Rejected("missing_field", f"{where} has no {name}", name)
    text = values.text(segment["line_content"], f"{where}.line_content")
    frames = [_frame(segment[name], f"{where}.{name}") for name in ("codec_frame_start", "codec_frame_end")]
    if frames[0] > frames[1]:
        detail = f"{where} ends at frame {frames[1]}, before it starts at frame {frames[0]}"
        raise Rejected("segment_frames", detail, frames[1])
    return Segment(text, *frames, {name: value for name, value in segment.items() if name not in SEGMENT_FIELDS})


def _frame(value: Any, where: str) -> int:
    frame = values.whole_number(value, where)
    if frame < 0:
        raise Rejected("segment_frames", f"{where} is {values.shown(value)}, below 0", values.shown(value))
    return frame


def _optional_text(content: dict[str, Any], name: str) -> str | None:
    return None if content.get(name) is None else values.text(content[name], name)


def _content(song: Song, folder: Path) -> dict[str, Any]:
    """The fields of one line, in the order of YuE's data, unknown ones last."""
    content: dict[str, Any] = {"id": song.id}
    for fields, references in ((CODES_FIELDS, song.codes), (AUDIO_FIELDS, song.audio)):
        for track, name in fields.items():
            if track in references:
                content[name] = rebase_reference(references[track], song.folder, folder)
    if song.duration_s is not None:
        content["audio_length_in_sec"] = song.duration_s
    if song.structure:
        content["msa"] = song.structure
    content["genres"] = song.genres
    if song.language is not None:
        content["language"] = song.language
    if song.text:
        content["text"] = song.text
    extra = dict(song.extra)
    further_lyrics = extra.pop(LYRICS, {})
    segments = [
        {
            **segment.extra,
            "codec_frame_start": segment.start_frame,
            "codec_frame_end": segment.end_frame,
            "line_content": segment.text,
        }
        for segment in song.segments
    ]
    if segments or further_lyrics:
        content[LYRICS] = {**further_lyrics, SEGMENTS: segments}
    return {**content, **extra}

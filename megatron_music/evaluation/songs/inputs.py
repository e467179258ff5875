"""The songs of a system: a folder that `generate` wrote, one of recordings, or one of f0 files.

Files belong together by the names that `manifest` knows (``songs/folder``): ``song/mix.wav`` and ``song/vocals.wav``,
or ``song.mp3`` and ``song.vocals.mp3``. A folder with such a track directly in it is one song. The vocal's f0 stands in
``song.f0``, ``song.f0.txt`` or ``song/f0.txt``; in a folder without any audio every ``.txt`` and ``.csv`` is one.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.files import read_json, read_text
from megatron_music.songs.labels import plain_label
from megatron_music.songs.lyrics import parse_lyrics
from megatron_music.songs.manifest import LYRICS, SEGMENTS
from megatron_music.songs.pairing import SIDECARS, TRACK_NAMES, PairedFiles, SongFile, pair, song_file, stems, suffix

F0 = "f0"
_F0_SUFFIXES = (".f0", ".f0.txt", ".f0.csv")
_PLAIN_F0_SUFFIXES = (".txt", ".csv")


@dataclass(frozen=True)
class SongFiles:
    """The files of one song.

    Attributes:
        name: its path below the folder, without suffix.
        tracks: absolute paths by ``mix``, ``vocals``, ``accompaniment`` and ``f0``.
        sidecars: absolute paths of texts beside it by their suffix: ``.json``, ``.lrc``, ``.txt``, ``.tags.txt``.
        problems: files that were passed over, and why.
    """

    name: str
    folder: Path
    tracks: dict[str, Path]
    sidecars: dict[str, Path] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """What to play or look at first, relative to the folder."""
        first = next(self.tracks[track] for track in ("mix", "vocals", "accompaniment", F0) if track in self.tracks)
        return os.path.relpath(first, self.folder)

    @property
    def heard(self) -> Path | None:
        """What a listener would hear: the mix, or the one track that there is."""
        return next((self.tracks[track] for track in ("mix", "vocals", "accompaniment") if track in self.tracks), None)

    def stamps(self) -> dict[str, Any]:
        """Sizes and times of all files, by which a change is seen."""
        return {str(path): fingerprint.of_stat(path) for path in [*self.tracks.values(), *self.sidecars.values()]}


@dataclass(frozen=True)
class Labelled:
    """A section of the song with its label, in seconds."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Prompt:
    """What the song was made from, as far as its files tell."""

    lyrics: str = ""
    tags: str = ""
    language: str | None = None
    sections: tuple[Labelled, ...] = ()


def songs_in(folder: str | Path, plain: str = "mix") -> list[SongFiles]:
    """The songs of a folder in the order of their names; hidden files and links to folders are passed over.

    Args:
        plain: the track that audio files hold whose names tell none, ``mix`` or ``vocals``.

    Raises:
        InputError: there is no such folder, no song in it, or a name that is not UTF-8, which no result could hold.
    """
    if plain not in ("mix", "vocals"):
        raise InputError("--plain", f"{plain!r} is no track", "name mix or vocals")
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "is a file" if folder.exists() else "no such folder", "name a folder of songs")
    folder = folder.resolve()
    listing = [
        (Path(parent), [name for name in sorted(names) if name[0] != "."])
        for parent, folders, names in os.walk(folder)
        if not _drop_hidden(folders)
    ]
    for parent, names in listing:
        if wrong := next((name for name in names if _is_no_text(name) or _is_no_text(str(parent))), None):
            shown = os.fsencode(parent / wrong).decode(errors="replace")
            raise InputError(shown, "has a name that is not UTF-8", "rename it")
    any_audio = any(stems(names) for _, names in listing)
    found = pair(file for parent, names in listing for file in _files(folder, parent, names, any_audio, plain))
    songs = [_song(paired, folder) for paired in found if paired.has_audio]
    if not songs:
        raise InputError(folder, "holds no songs", "name a folder with wav, flac, ogg, mp3, m4a or f0 files")
    return songs


def read_prompt(song: SongFiles, duration_s: float) -> tuple[Prompt, list[str]]:
    """Lyrics, tags, language and sections that stand beside a song, and what could not be read of them."""
    problems: list[str] = []
    content = _attempt(read_json, song.sidecars.get(".json"), problems) or {}
    if not isinstance(content, dict):
        problems.append(f"{song.sidecars['.json']}: does not hold a mapping of fields")
        content = {}
    text = _attempt(read_text, song.sidecars.get(".lrc") or song.sidecars.get(".txt"), problems)
    request = content.get("request") if isinstance(content.get("request"), dict) else {}
    segments = _segments(content)
    lyrics = _sung(text) if text else ""
    if not lyrics:
        # Of a song that was sung in part, only what was sung.
        texts = [segment.get("text") for segment in segments] or request.get("lyrics") or content.get("lyrics")
        texts = texts if isinstance(texts, list) else [texts]
        lyrics = "\n".join(filter(None, (_sung(one) for one in texts if isinstance(one, str))))
    tags = _attempt(read_text, song.sidecars.get(".tags.txt"), problems)
    known = [tags, request.get("tags"), content.get("genres"), content.get("tags")]
    language = content.get("language")
    return Prompt(
        lyrics=lyrics,
        tags=next((" ".join(one.split()) for one in known if isinstance(one, str) and one.strip()), ""),
        language=language if isinstance(language, str) else None,
        sections=tuple(_sections(content, segments, duration_s)),
    ), problems


def _sung(text: str) -> str:
    return "\n".join(line.text for line in parse_lyrics(text).lines)


def _drop_hidden(folders: list[str]) -> None:
    """Keeps ``os.walk`` out of hidden folders, and in order."""
    folders[:] = sorted(name for name in folders if name[0] != ".")


def _files(folder: Path, parent: Path, names: list[str], any_audio: bool, plain: str) -> Iterator[SongFile]:
    """The files of one folder, with absolute paths; audio without a track's name is ``plain``."""
    stems_here = stems(names)
    is_song = parent == folder and stems_here & TRACK_NAMES.keys()
    place = folder.name if is_song else os.path.relpath(parent, folder).removeprefix(".")
    for name in names:
        path, lower = str(parent / name), name.lower()
        ending = next((ending for ending in _F0_SUFFIXES if lower.endswith(ending)), None)
        if ending is None and not any_audio and suffix(name) in _PLAIN_F0_SUFFIXES:
            ending = suffix(name)
        if ending or (place and os.path.splitext(lower)[0] == F0):
            stem = name[: -len(ending)] if ending else F0
            yield SongFile(place if place and stem.lower() == F0 else os.path.join(place, stem), F0, path)
        elif (file := song_file(place, name, stems_here)) and file.role != "further":
            stem = os.path.splitext(lower)[0]
            named = stem in TRACK_NAMES or stem.rpartition(".")[2] in TRACK_NAMES
            yield SongFile(file.id, plain if file.role == "mix" and not named else file.role, path)


def _song(paired: PairedFiles, folder: Path) -> SongFiles:
    paths, passed_over = paired.chosen()
    files = {role: Path(path) for role, path in paths.items()}
    problems = [
        f"{Path(file.path).name} is passed over: {files[file.role].name} is the {file.role} too" for file in passed_over
    ]
    if paired.alike:
        problems.append(f"is another song than {', '.join(paired.alike)}; texts are taken if they are spelled like it")
    tracks = {role: path for role, path in files.items() if role not in SIDECARS}
    sidecars = {role: path for role, path in files.items() if role in SIDECARS}
    return SongFiles(paired.id.replace(os.sep, "/"), folder, tracks, sidecars, tuple(problems))


def _is_no_text(name: str) -> bool:
    return os.fsencode(name).decode(errors="replace") != name


def _attempt(read: Any, path: Path | None, problems: list[str]) -> Any:
    if path is None:
        return None
    try:
        return read(path)
    except InputError as error:
        problems.append(str(error))
        return None


def _segments(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Segments as `generate` or a manifest writes them: ``text`` and frames."""
    lyrics = content.get(LYRICS)
    found = content.get("segments") or (lyrics.get(SEGMENTS) if isinstance(lyrics, dict) else None)
    if not isinstance(found, list):
        return []
    return [{"text": one.get("line_content"), **one} for one in found if isinstance(one, dict)]


def _sections(content: dict[str, Any], segments: list[dict[str, Any]], duration_s: float) -> list[Labelled]:
    """From a manifest's ``msa``, or from labels of segments and their shares of all frames."""
    structure = content.get("msa")
    if isinstance(structure, list):
        spans = [(one.get("label"), one.get("start"), one.get("end")) for one in structure if isinstance(one, dict)]
    else:
        texts = [segment.get("text") for segment in segments]
        sections = [parse_lyrics(text).sections if isinstance(text, str) else [] for text in texts]
        labels = [found[0].label if found else "" for found in sections]
        starts = [segment.get("start_frame", segment.get("codec_frame_start")) for segment in segments]
        ends = [segment.get("end_frame", segment.get("codec_frame_end")) for segment in segments]
        frames = content.get("frames") or max((end for end in ends if _is_time(end)), default=0)
        scale = duration_s / frames if _is_time(frames) and frames > 0 else 0.0
        spans = [
            (label, start * scale, end * scale)
            for label, start, end in zip(labels, starts, ends, strict=True)
            if _is_time(start) and _is_time(end)
        ]
    return [
        Labelled(plain_label(label), float(start), min(float(end), duration_s))
        for label, start, end in spans
        if isinstance(label, str) and label and _is_time(start) and _is_time(end) and start < min(end, duration_s)
    ]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")

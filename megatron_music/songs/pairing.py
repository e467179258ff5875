"""Which files are of one song, by their names.

Names are the same without regard to case, to the form of Unicode (macOS writes ``é`` as two signs) and to how many
blanks stand where. The song's id is the name as its mix spells it, or else its vocals, or its accompaniment. Where two
spellings hold the same track they are two songs, each with the files that are spelled as it is.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

AUDIO_SUFFIXES = (
    ".wav", ".rf64", ".bw64", ".w64", ".flac", ".aiff", ".aif", ".aifc", ".caf", ".au", ".wv", ".tta", ".ape",
    ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".m4b", ".aac", ".mka", ".wma", ".mp2", ".mp4", ".webm",
)  # fmt: skip
"""Files taken for audio, the better first where a track has several. The last two may be films, whose sound is used."""
TRACK_NAMES = {
    "mix": "mix", "mixture": "mix", "vocals": "vocals", "vocal": "vocals", "accompaniment": "accompaniment",
    "instrumental": "accompaniment", "no_vocals": "accompaniment",
}  # fmt: skip
FURTHER_STEMS = ("drums", "bass", "other", "guitar", "piano")
SIDECARS = (".tags.txt", ".txt", ".lrc", ".json")
_FOLDER_SIDECARS = {"lyrics.txt": ".txt", "lyrics.lrc": ".lrc", "tags.txt": ".tags.txt", "song.json": ".json"}
_NAMING = ("mix", "vocals", "accompaniment")


@dataclass(frozen=True, slots=True)
class SongFile:
    """A file and what it is of which song: a track's name, one of ``SIDECARS``, or ``further``.

    ``id`` is the song's name as this file spells it.
    """

    id: str
    role: str
    path: str


@dataclass(slots=True)
class PairedFiles:
    """The files of one song.

    Attributes:
        alike: ids of other songs from which this one differs by case, blanks or the form of Unicode alone. Texts
            without audio that have some may belong to each of them.
    """

    id: str
    files: list[SongFile]
    alike: tuple[str, ...] = ()

    @property
    def has_audio(self) -> bool:
        """Whether there is more than texts."""
        return any(file.role not in SIDECARS for file in self.files)

    def chosen(self) -> tuple[dict[str, str], list[SongFile]]:
        """The path of each role, and the files that are passed over because another has their role.

        Of audio the better format is chosen, of texts the one spelled like the song, in the song's own folder.
        """
        paths: dict[str, str] = {}
        passed_over = []
        audio = [file for file in self.files if file.role not in SIDECARS]
        texts = [file for file in self.files if file.role in SIDECARS]
        audio.sort(key=lambda file: (file.role, _rank(file.path), file.path))
        texts.sort(key=lambda file: (file.id == self.id, file.path), reverse=True)
        for file in audio + texts:
            if file.role in paths:
                passed_over.append(file)
            else:
                paths[file.role] = file.path
        return paths, passed_over


def song_file(place: str, name: str, stems_here: set[str]) -> SongFile | None:
    """What a file is, by its name; None where it is nothing that this reads.

    Args:
        place: its folder, relative to the folder of all songs.
        stems_here: ``stems`` of the files in it.
    """
    path, name = os.path.join(place, name), name.rstrip()
    lower = name.lower()
    if place and lower in _FOLDER_SIDECARS:
        return SongFile(place, _FOLDER_SIDECARS[lower], path)
    for ending in SIDECARS:
        if lower.endswith(ending):
            return SongFile(os.path.join(place, name[: -len(ending)]), ending, path)
    if suffix(name) not in AUDIO_SUFFIXES:
        return None
    stem = os.path.splitext(name)[0]
    song, dot, last = stem.rpartition(".")
    if last.lower() in FURTHER_STEMS and _folded(f"{song}{dot}vocals") in stems_here:
        return SongFile("", "further", path)
    if last.lower() in TRACK_NAMES and (dot or place):
        return SongFile(os.path.join(place, song) if dot else place, TRACK_NAMES[last.lower()], path)
    return SongFile(os.path.join(place, stem), "mix", path)


def stems(names: Iterable[str]) -> set[str]:
    """The names of the audio files among ``names``, without suffix and as names are compared."""
    return {_folded(os.path.splitext(name.rstrip())[0]) for name in names if suffix(name) in AUDIO_SUFFIXES}


def suffix(name: str) -> str:
    """A name's suffix in lower case, ``.wav``; some systems leave blanks behind it."""
    return os.path.splitext(name)[1].lower().rstrip()


def pair(files: Iterable[SongFile]) -> list[PairedFiles]:
    """The files song by song, in the order of their ids. Texts without audio come as a song too."""
    by_id: dict[str, PairedFiles] = {}
    for file in files:
        by_id.setdefault(file.id, PairedFiles(file.id, [])).files.append(file)
    songs = list(by_id.values())
    for plain in (_composed, _folded):  # what differs by the form of Unicode alone is nearer than by case
        songs = _joined(songs, plain)
    return sorted(songs, key=lambda song: song.id)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    name = _composed(unicodedata.normalize("NFD", name).casefold())
    return os.sep.join(" ".join(part.split()) for part in name.split(os.sep))


def _joined(songs: list[PairedFiles], plain: Callable[[str], str]) -> list[PairedFiles]:
    groups: dict[str, list[PairedFiles]] = {}
    for song in songs:
        groups.setdefault(plain(song.id), []).append(song)
    return [song for group in groups.values() for song in (group if len(group) == 1 else _join(group))]


def _join(group: list[PairedFiles]) -> list[PairedFiles]:
    """One song where each track is in one of the spellings; else they stay apart and know of each other."""
    with_audio = [song for song in group if song.has_audio]
    if not with_audio:
        return group
    spellings = Counter(role for song in with_audio for role in {file.role for file in song.files} - {*SIDECARS})
    if max(spellings.values()) == 1:
        files = [file for song in group for file in song.files]
        naming = {file.role: file.id for file in files if file.role not in SIDECARS}
        id = next((naming[role] for role in _NAMING if role in naming), with_audio[0].id)
        return [PairedFiles(id, files)]
    for song in group:
        song.alike = tuple(sorted(other.id for other in with_audio if other is not song))
    return group


def _rank(path: str) -> int:
    ending = suffix(path)
    return AUDIO_SUFFIXES.index(ending) if ending in AUDIO_SUFFIXES else 0

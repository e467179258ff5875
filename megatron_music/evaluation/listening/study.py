"""A listening test as a folder: what is compared, the clips that raters hear, and their answers.

FOLDER/study.json      systems, songs and pairs; its clips have names that tell nothing
FOLDER/clips/*.flac    all in one format, without metadata, and of one loudness unless told otherwise
FOLDER/answers.jsonl   a line for each answer, in the order in which they came
"""

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from megatron_music.corpus.shuffle import seeded_generator
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.evaluation.listening.clips import write_clips
from megatron_music.evaluation.songs.inputs import SongFiles, songs_in
from megatron_music.files import read_json, read_text, write_json
from megatron_music.recipe.fields import Strict
from megatron_music.recipe.recipe import parse_strict
from megatron_music.songs.lyrics import parse_lyrics

FORMAT, VERSION = "megatron-music listening test", 1
STUDY, CLIPS, ANSWERS = "study.json", "clips", "answers.jsonl"
LYRICS_FOLLOWING = "lyrics following"
ASPECTS = {
    "musicality": "Which is better music: melody, harmony, rhythm?",
    "vocal quality": "Which has the better singing?",
    "accompaniment quality": "Which has the better accompaniment?",
    "song structure": "Which is better built: do its sections belong together, does the chorus return?",
    LYRICS_FOLLOWING: "Which sings more of the lyrics, and more clearly?",
    "overall": "Which is the better song, all in all?",
}
"""Those of the comparison in YuE's paper that concern every song, and the song as a whole."""
_MOST_LYRICS = 20_000


class _Part(Strict):
    model_config = ConfigDict(strict=True)


class Clip(_Part):
    """A song that raters hear; ``token`` names its file."""

    token: str
    system: str
    song: str
    lyrics: str


class Pair(_Part):
    """Two clips, by their tokens; what ``first`` and ``second`` mean to a rater is drawn anew for each."""

    token: str
    first: str
    second: str


class Study(_Part):
    """What is compared; ``systems`` are folders by name, ``lufs`` is None where loudness was left as it is."""

    format: Literal["megatron-music listening test"] = FORMAT
    version: Literal[1] = VERSION
    seed: int
    lufs: float | None
    systems: dict[str, str]
    clips: list[Clip]
    pairs: list[Pair]

    @classmethod
    def read(cls, folder: str | Path) -> "Study":
        """Reads a folder's; raises InputError where there is none that this program reads."""
        path = Path(folder) / STUDY
        content = read_json(path)
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise InputError(path, "is no listening test of this version", "name a folder of `evaluate listen`")
        return parse_strict(cls, content, path)


@dataclass(frozen=True)
class Turn:
    """A pair as one rater meets it: the clips on the sides A and B."""

    pair: Pair
    a: Clip
    b: Clip

    @property
    def lyrics(self) -> list[str]:
        """The lyrics of both clips, once where they are the same."""
        return list(dict.fromkeys(clip.lyrics for clip in (self.a, self.b) if clip.lyrics))

    @property
    def aspects(self) -> list[str]:
        """What is asked of them."""
        return [name for name in ASPECTS if name != LYRICS_FOLLOWING or self.lyrics]


def open_study(
    folder: str | Path,
    systems: Sequence[str | Path] = (),
    seed: int = 0,
    match_loudness: bool = True,
    say: Callable[[str], None] = print,
) -> Study:
    """The listening test of a folder, which is made of ``systems`` where there is none yet.

    Songs are found and named as `evaluate songs` does; every two systems are compared by their songs of the same name,
    or, where they have none in common, by songs drawn at random. One that can't be read is left out and told. Killed
    while it is made, the test is made anew.

    Args:
        systems: a folder of songs each; the folder's name is the system's. None goes on with the test that is there.

    Raises:
        InputError: the folder holds something else, or a test of other systems or loudness; there are no two systems,
            two of one name, or nothing to compare.
    """
    folder = Path(folder)
    named = _named(systems)
    if not (folder / STUDY).exists():
        if len(named) < 2:
            raise InputError(folder, "holds no listening test, and a new one needs two systems",
                             "name two folders of songs or more")  # fmt: skip
        if folder.is_dir() and (others := {path.name for path in folder.glob("[!.]*")} - {CLIPS}):
            raise InputError(folder, f"holds no {STUDY} but {sorted(others)[0]}", "name a new folder")
        for path in named.values():
            if folder.resolve().is_relative_to(path):
                raise InputError(folder, f"lies in {path}, whose songs are heard", "name another folder with --out")
        songs = {name: _songs(path) for name, path in named.items()}
        with workplace(folder):
            if not (folder / STUDY).exists():  # as it may since another server, started at the same time, made it
                _make(folder, named, songs, seed, match_loudness, say)
    study = Study.read(folder)
    if named and named != study.systems:
        raise InputError(folder, f"holds a test of {', '.join(study.systems.values())}", "name these, or a new folder")
    if match_loudness != (study.lufs is not None):
        raise InputError(folder, f"holds a test with loudness {'matched' if study.lufs else 'left as it is'}",
                         "ask for the same, or name a new folder")  # fmt: skip
    return study


def _named(systems: Sequence[str | Path]) -> dict[str, str]:
    named: dict[str, str] = {}
    for path in (Path(system).resolve() for system in systems):
        if path.name in named:
            what = f"is named like {named[path.name]}, and systems go by their folders' names"
            raise InputError(path, what, "rename one of the folders")
        named[path.name] = str(path)
    return named


def _songs(system: str) -> dict[str, SongFiles]:
    """The songs that can be heard, by name."""
    songs = {song.name: song for song in songs_in(system) if song.heard}
    if not songs:
        raise InputError(system, "holds no songs to hear", "name a folder with wav, flac, ogg, mp3 or m4a files")
    return songs


def _make(
    folder: Path,
    systems: dict[str, str],
    files: dict[str, dict[str, SongFiles]],
    seed: int,
    match_loudness: bool,
    say: Callable[[str], None],
) -> None:
    pairs = _pairs({name: list(songs) for name, songs in files.items()}, seed, say)
    wanted = list(dict.fromkeys(song for pair in pairs for song in pair))
    shutil.rmtree(folder / CLIPS, ignore_errors=True)
    tokens = {song: secrets.token_hex(16) for song in wanted}
    jobs = [(files[system][song].heard, clip_path(folder, tokens[system, song])) for system, song in wanted]
    lufs, written = write_clips(jobs, match_loudness, say)
    clips = {
        (system, song): Clip(
            token=tokens[system, song], system=system, song=song, lyrics=_lyrics(files[system][song].sidecars, say)
        )
        for (system, song), there in zip(wanted, written, strict=True)
        if there
    }
    made = [
        Pair(token=secrets.token_hex(16), first=clips[first].token, second=clips[second].token)
        for first, second in pairs
        if first in clips and second in clips
    ]
    if not made:
        raise InputError(folder, "there is no pair of songs to compare", "name folders with songs that can be read")
    study = Study(seed=seed, lufs=lufs, systems=systems, clips=list(clips.values()), pairs=made)
    write_json(folder / STUDY, study.model_dump(mode="json"))


def _pairs(
    songs: dict[str, list[str]], seed: int, say: Callable[[str], None]
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of (system, song)."""
    pairs = []
    for one, other in combinations(songs, 2):
        theirs = set(songs[other])
        common = [(song, song) for song in songs[one] if song in theirs]
        if not common:
            say(f"{one} and {other} have no song of one name; theirs are paired at random")
            shuffled = [seeded_generator("listen", seed, name).permutation(songs[name]) for name in (one, other)]
            common = [(str(first), str(second)) for first, second in zip(*shuffled, strict=False)]
        pairs += [((one, first), (other, second)) for first, second in common]
    return pairs


def _lyrics(sidecars: dict[str, Path], say: Callable[[str], None]) -> str:
    """The lyrics beside a song, or those in what `generate` wrote beside it; nothing where there are none, or where
    they can't be read, which is told."""
    if sidecar := sidecars.get(".lrc") or sidecars.get(".txt"):
        try:
            text = read_text(sidecar)
        except InputError as error:
            say(f"{error}; listeners see no lyrics of it")
            return ""
        return "\n\n".join(section.strip() for section in parse_lyrics(text).texts)[:_MOST_LYRICS]
    if ".json" in sidecars:
        try:
            record = read_json(sidecars[".json"])
            return "\n\n".join(text.strip() for text in record["request"]["lyrics"])[:_MOST_LYRICS]
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""  # of another program
    return ""


def clip_path(folder: Path, token: str) -> Path:
    """The file of a clip."""
    return folder / CLIPS / f"{token}.flac"


def turns(study: Study, rater: str) -> list[Turn]:
    """All pairs in the order of one rater, always the same for the same name.

    Any beginning of it has as many pairs of every two systems, give or take one, as far as there are so many; of these
    each system is on side A in every other one.
    """
    chance = seeded_generator("listen", study.seed, rater)
    clips = {clip.token: clip for clip in study.clips}
    waiting: dict[tuple[str, str], list[Turn]] = {}
    for at in chance.permutation(len(study.pairs)):
        pair = study.pairs[at]
        first, second = clips[pair.first], clips[pair.second]
        waiting.setdefault((first.system, second.system), []).append(Turn(pair, first, second))
    for met in waiting.values():
        start = int(chance.integers(2))
        met[:] = [Turn(turn.pair, turn.b, turn.a) if (n + start) % 2 else turn for n, turn in enumerate(met)]
    ordered: list[Turn] = []
    while any(waiting.values()):
        left = [met for met in waiting.values() if met]
        ordered += [left[at].pop() for at in chance.permutation(len(left))]
    return ordered

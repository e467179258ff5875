"""Songs without any downloaded data: a small tokenizer, the released id layout, random codes.

``songs`` hands out one song with changes, ``random_songs`` manifests of songs of every shape, the same on every machine
and in every version of numpy.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_music.corpus.shuffle import seeded_bits
from megatron_music.documents.document import DocumentContext
from megatron_music.songs.song import Segment, Song
from megatron_music.vocabulary.text import TextTokenizer, train_text_tokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

WORDS = [
    "la", "Row", "moonlight", "naïve", "Straße", "’tis", "你好", "世界", "愛してる", "사랑", "Привет", "مرحبا", "😀",
    "👩‍👧", "e\u0301", "\u00a0", "\u2028", "\t", "\r", "\x00", "ﬁ", "𝄞", "1999", "...", '"so"', "\\n",
    "[end_of_segment]",
]  # fmt: skip
MARKS = [
    "<EOA>",
    "<SOA>",
    "<s>",
    "</s>",
    "<stage_1>",
    "<xcodec>",
    "<unk>",
    "<0x0A>",
    "< EOA>",
    "<<EOV>>",
    "<xcodec/0/7>",
]
LABELS = ["[verse]\n", "[chorus]\n", "[intro]\n\n", "", "[]\n", "[Verse 1] "]
GENRES = ["folk", "airy vocal", "女声", "1980s", "😀", "rock<EOA>"]


@pytest.fixture(scope="session")
def context(repository, tmp_path_factory) -> DocumentContext:
    vocabulary = Vocabulary.load(repository / "tokenizers" / "yue.yaml")
    path = tmp_path_factory.mktemp("documents") / "tokenizer.model"
    train_text_tokenizer(["[verse]\nRow, row, row your boat\n\n", "[chorus]\nGently down the stream\n\n"], path, 400)
    return DocumentContext(vocabulary, TextTokenizer(path, vocabulary), vocabulary.codec())


class SongFolder:
    """Writes the codes of songs into a folder and hands out the songs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._rng = np.random.default_rng(0)

    def song(self, frames: int = 3000, codebooks: int = 8, codes: dict | None = None, **changes) -> Song:
        """A song of two segments with random codes in all three tracks; ``codes`` replaces those of some tracks."""
        tracks = {
            track: self._rng.integers(0, 1024, (codebooks, frames)) for track in ("mix", "vocals", "accompaniment")
        }
        references = {}
        for track, codes_KT in {**tracks, **(codes or {})}.items():
            references[track] = f"{track}.npy"
            np.save(self.folder / references[track], codes_KT.astype(np.int32))
        fields = {
            "duration_s": frames / 50,
            "genres": "folk, female, gentle, guitar",
            "segments": [
                Segment("[verse]\nRow your boat\n\n", 0, frames // 3),
                Segment("[chorus]\nGently\n\n", frames // 3, frames),
            ],
        }
        return Song("song", references, folder=self.folder, **{**fields, **changes})


@pytest.fixture
def songs(tmp_path) -> SongFolder:
    return SongFolder(tmp_path)


class Dice:
    """Draws that depend on a seed alone."""

    def __init__(self, seed: int):
        self._bits = iter(seeded_bits(1 << 16, "dice", seed).tolist())

    def below(self, count: int) -> int:
        return next(self._bits) % count

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def one_of(self, items: list) -> object:
        return items[self.below(len(items))]


@pytest.fixture(scope="session")
def random_songs() -> Callable[..., Path]:
    """Writes a manifest of random songs: ``random_songs(folder, songs, seed, marks=True)``."""
    return _write_manifest


def _write_manifest(folder: Path, songs: int, seed: int, marks: bool = True) -> Path:
    """Songs with all tracks at 12 codebooks, in YuE's fields; some must be rejected by one task or another.

    ``marks`` lets texts hold the spelling of special tokens.
    """
    lines = [_song(folder, str(number), Dice(seed * 10_000 + number), marks) for number in range(songs)]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return manifest


def _song(folder: Path, id: str, dice: Dice, marks: bool) -> dict:
    frames = 120 + dice.below(1300)
    lengths = {
        "codec": frames + dice.below(4),
        "vocals_codec": frames,
        "instrumental_codec": frames + dice.one_of([0, 0, 0, 0, 1, -4, 10, -10, 11]),
    }
    names = {field: _codes(folder, f"{id}.{field}.npy", length, dice) for field, length in lengths.items()}
    # Mostly 49.5 to 50.5 codes a second, at times outside 49 to 51.
    milliseconds = frames * 20 * (9900 + dice.below(200)) // 10_000 if dice.chance(90) else frames * 19
    cuts = sorted(dice.below(frames) for _ in range(1 + dice.below(5)))
    text = f"Said: {_text(dice, marks)}"
    return {
        "id": id,
        **names,
        "audio_length_in_sec": milliseconds / 1000,
        "msa": [{"start": 0.0, "end": frames / 50, "label": "chorus"}],
        "genres": str(dice.one_of([", ", " ", ","])).join(str(dice.one_of(GENRES)) for _ in range(dice.below(5))),
        "text": text,
        "splitted_lyrics": {
            "segmented_lyrics": [
                _segment(start, end, frames, dice, marks)
                for start, end in zip([0, *cuts], [*cuts, frames], strict=True)
            ]
        },
    }


def _codes(folder: Path, name: str, frames: int, dice: Dice) -> str:
    codes_KT = (seeded_bits(12 * frames, "codes", dice.below(1 << 30)) % 1024).reshape(12, frames).astype(np.int16)
    for start in range(0, frames, 300):
        if dice.chance(20):  # a window of little variety
            codes_KT[0, start : start + 300] %= 23 + dice.below(4)
    np.save(folder / name, codes_KT)
    return str(folder / name)


def _segment(start: int, end: int, frames: int, dice: Dice, marks: bool) -> dict:
    if dice.chance(10):
        end = start + dice.below(60)
    elif dice.chance(10):
        end = frames + dice.one_of([-9, 0, 3, 12, 5000])
    end = max(start, end)
    lines = f"{dice.one_of(LABELS)}{_text(dice, marks)}{dice.one_of(['', chr(10), chr(10) * 2])}"
    frames_of = {"codec_frame_start": start, "codec_frame_end": end}
    return {"offset": start / 50, "duration": (end - start) / 50, **frames_of, "line_content": lines}


def _text(dice: Dice, marks: bool) -> str:
    pool = WORDS + MARKS if marks else WORDS
    words = (str(dice.one_of(pool)) for _ in range(dice.below(25)))
    return "".join(word + str(dice.one_of([" ", " ", "\n", ""])) for word in words)

"""A song of each kind, without any downloaded data: a small tokenizer, the released id layout, random codes."""

from pathlib import Path

import numpy as np
import pytest

from megatron_music.documents.document import DocumentContext
from megatron_music.songs.song import Segment, Song
from megatron_music.vocabulary.text import TextTokenizer, train_text_tokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary


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

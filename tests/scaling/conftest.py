"""Two songs of the songbook as a corpus, and a finished ladder over it."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

# Spawned processes import their function by its module's name, along the parent's path.
sys.path.insert(0, str(Path(__file__).parent))

SONGS = ("row_your_boat", "frere_jacques")


@pytest.fixture(scope="session")
def song_corpus(tmp_path_factory, repository) -> Path:
    """``FOLDER/corpus`` of two songs, a source ``songs`` and a source ``held_out``; ``FOLDER/songs`` has the audio."""
    from megatron_music.corpus.build import build_corpus
    from megatron_music.corpus.encode import encode_manifest
    from megatron_music.documents.texts import texts_of_manifest
    from megatron_music.songs.songbook import render_songbook
    from megatron_music.vocabulary.text import train_text_tokenizer

    folder = tmp_path_factory.mktemp("toy")
    (folder / "book").mkdir()
    for name in SONGS:
        shutil.copy(repository / "examples" / "songbook" / f"{name}.abc", folder / "book")
    render_songbook(folder / "book", folder / "songs", takes=2, processes=1)
    manifest = folder / "songs" / "manifest.jsonl"
    encode_manifest(manifest, folder / "codes", codebooks=4, codebook_size=16)
    train_text_tokenizer(texts_of_manifest(manifest), folder / "tokenizer.model", 300)
    shutil.copy(repository / "tests" / "data" / "tiny_vocabulary.yaml", folder / "vocabulary.yaml")
    task = {"manifest": "codes/manifest.jsonl", "task": "lyrics_to_song", "min_lyric_lines": 2}
    sources = {"songs": task, "held_out": task | {"split": "held_out"}}
    spec = {"vocabulary": "vocabulary.yaml", "tokenizer": "tokenizer.model", "held_out": [f"{SONGS[0]}*"]}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec | {"sources": sources}))
    build_corpus(folder / "spec.yaml", folder / "corpus", processes=1)
    return folder / "corpus"


def write_recipe(path: Path, corpus: Path, vocabulary: Path) -> Path:
    """Writes a recipe of two phases of 60,000 tokens, the second annealed, to ``path``."""
    phase = {"context_tokens": 64, "batch_sequences": 8, "mixture": {"songs": 1}}
    network = {"hidden_size": 32, "layers": 2, "attention_heads": 2, "key_value_heads": 1, "ffn_hidden_size": 96}
    content = {
        "name": "toy",
        "vocabulary": str(vocabulary),
        "corpus": str(corpus),
        "run": "run",
        "precision": "fp32",
        "network": network | {"position_limit": 64, "init_std": 0.15},
        "optimizer": {"beta2": 0.98},
        "phases": [
            {"name": "constant", "tokens": "60k", "learning_rate": 5e-3, **phase},
            {
                "name": "annealing",
                "tokens": "60k",
                "learning_rate": {"shape": "cosine", "start": 5e-3, "end": 1e-4},
                **phase,
            },
        ],
        "watch": {
            "log_every_steps": 5,
            "validation": {"source": "held_out", "sequences": 8, "every_steps": 20},
            "invalid_tokens": {"source": "held_out", "positions": 32, "every_steps": 40},
        },
        "checkpoints": {"every_steps": 1000, "keep": 1},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def toy_recipe(song_corpus, tmp_path_factory) -> Path:
    """The file of a recipe over the two songs."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "toy.yaml", song_corpus, song_corpus / "vocabulary.yaml")


@pytest.fixture
def bare_recipe(tmp_path, repository) -> Path:
    """The file of the same recipe over a corpus that is not there."""
    vocabulary = repository / "tests" / "data" / "tiny_vocabulary.yaml"
    return write_recipe(tmp_path / "recipe" / "toy.yaml", tmp_path / "corpus", vocabulary)

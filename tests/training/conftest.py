"""A small corpus and a small recipe over it."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary

# Spawned processes import their function by its module's name, along the parent's path.
sys.path.insert(0, str(Path(__file__).parent))

SPECIALS = {"<EOD>": 64, "<SOA>": 65, "<EOA>": 66, "<tiny>": 67}
VOCABULARY = Vocabulary("tiny", 64, SPECIALS, {"tiny": CodecRange("tiny", "<tiny>", 68, 1, 32)}, 100, 128, "tiny")


def _document(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A line of text, then two tracks that climb through the codes a step at a time."""
    text = rng.integers(0, 64, rng.integers(3, 9))
    frames = int(rng.integers(20, 60))
    start = rng.integers(0, 32, 2)
    codes = (68 + (start + np.arange(frames)[:, None]) % 32).reshape(-1)
    ids = np.concatenate([text, [65, 67], codes, [66, 64]])
    kinds = np.full(len(ids), Kind.SPECIAL)
    kinds[: len(text)] = Kind.TEXT
    audio = slice(len(text) + 2, len(text) + 2 + len(codes))
    kinds[audio] = np.tile([Kind.VOCAL, Kind.ACCOMPANIMENT], frames)
    return ids.astype(np.int32), kinds.astype(np.uint8)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Three sources of 40 documents each."""
    folder = tmp_path_factory.mktemp("corpus")
    VOCABULARY.save(folder / "vocabulary.yaml")
    for number, name in enumerate(["songs", "loops", "held_out"]):
        rng = np.random.default_rng(number)
        with IndexedWriter(folder / name, {"vocabulary": "tiny"}) as writer:
            for _ in range(40):
                writer.add(*_document(rng))
    return folder


@pytest.fixture
def make_recipe(corpus, tmp_path):
    """A recipe of three phases and 12 steps; keywords replace its fields."""
    return _maker(corpus, tmp_path)


@pytest.fixture(scope="module")
def make_module_recipe(corpus, tmp_path_factory):
    """The same for fixtures of a module."""
    return _maker(corpus, tmp_path_factory.mktemp("recipe"))


def _maker(corpus: Path, folder: Path) -> Callable[..., Recipe]:
    def phase(name, tokens, context_tokens, learning_rate, mixture):
        return {
            "name": name,
            "tokens": tokens,
            "context_tokens": context_tokens,
            "batch_sequences": 4,
            "learning_rate": learning_rate,
            "mixture": mixture,
        }

    def make(**fields) -> Recipe:
        content = {
            "name": "tiny",
            "vocabulary": str(corpus / "vocabulary.yaml"),
            "corpus": str(corpus),
            "run": str(folder / "run"),
            "precision": "fp32",
            "network": {
                "hidden_size": 32,
                "layers": 2,
                "attention_heads": 4,
                "key_value_heads": 2,
                "ffn_hidden_size": 64,
                "position_limit": 64,
            },
            "phases": [
                phase("warm-up", 4 * 128, 32, {"shape": "linear", "start": 0, "end": 0.01}, {"songs": 3, "loops": 1}),
                phase("constant", 4 * 128, 32, 0.01, {"songs": 1, "loops": 1}),
                phase("long", 4 * 256, 64, {"shape": "cosine", "start": 0.01, "end": 0.001}, {"songs": 1}),
            ],
            "watch": {
                "log_every_steps": 1,
                "validation": {"source": "held_out", "sequences": 4, "every_steps": 4},
                "invalid_tokens": {"source": "held_out", "positions": 16, "every_steps": 6},
            },
            "checkpoints": {"every_steps": 1, "keep": 100},
        }
        return Recipe.parse({**content, **fields}, folder / "recipe.yaml")

    return make

"""Songs whose music is told by their words, and small runs over them, for the tests of the gate."""

from pathlib import Path

import numpy as np

from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

STEPS = {"la": 1, "sun": 5, "sing": 10}
SEGMENTS, FRAMES, CODES = 2, 16, 16
REFERENCE_FRAMES = 12


class Writer:
    """Documents of songs: the vocal climbs by its segment's word, or one more; the accompaniment is three above it."""

    def __init__(self, vocabulary: Vocabulary, tokenizer: TextTokenizer, rng: np.random.Generator, shuffled: bool):
        self.vocabulary, self.tokenizer, self.rng, self.shuffled = vocabulary, tokenizer, rng, shuffled
        codec = vocabulary.codec()
        self.opening = [vocabulary.special("<SOA>"), *vocabulary.marker_ids(codec)]
        self.end, self.first = vocabulary.special("<EOA>"), codec.first

    def track(self, word: str, frames: int) -> np.ndarray:
        """Vocal and accompaniment codes, (2, frames), each in its own random order where they are shuffled."""
        moves = STEPS[word] + self.rng.integers(0, 2, frames)
        vocal = (self.rng.integers(CODES) + np.cumsum(moves)) % CODES
        both = np.stack([vocal, (vocal + 3) % CODES])
        return self.rng.permuted(both, axis=1) if self.shuffled else both

    def document(self, reference: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Ids and kinds; with ``reference`` some audio of the first word stands behind the header."""
        words = [str(self.rng.choice(list(STEPS))) for _ in range(SEGMENTS)]
        parts = [self._text("[Genre] a\n" + "\n".join(words))]
        if reference:
            parts += [self._text("[start_of_reference]"), self._audio(self.track(words[0], REFERENCE_FRAMES))]
        for word in words:
            parts += [self._text(f"[verse]\n{word}\n\n"), self._audio(self.track(word, FRAMES))]
        parts.append((np.array([self.vocabulary.special("<EOD>")]), np.array([Kind.SPECIAL])))
        ids, kinds = (np.concatenate(column) for column in zip(*parts, strict=True))
        return ids.astype(np.int32), kinds.astype(np.uint8)

    def _text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(self.tokenizer.encode(text))
        return ids, np.full(len(ids), Kind.TEXT)

    def _audio(self, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = self.first + both.T.reshape(-1)
        kinds = np.tile([Kind.VOCAL, Kind.ACCOMPANIMENT], both.shape[1])
        ids = np.concatenate([self.opening, codes, [self.end]])
        special = [int(Kind.SPECIAL)]
        return ids, np.concatenate([special * len(self.opening), kinds, special])


def write_corpus(folder: Path, repository: Path, tokenizer_file: Path, shuffled: bool) -> Path:
    """Sources lyrics_to_song, reference and held_out, with vocabulary and tokenizer."""
    folder.mkdir()
    vocabulary_file = repository / "tests" / "data" / "tiny_vocabulary.yaml"
    (folder / "vocabulary.yaml").write_bytes(vocabulary_file.read_bytes())
    (folder / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    vocabulary = Vocabulary.load(vocabulary_file)
    tokenizer = TextTokenizer(tokenizer_file, vocabulary)
    for seed, (name, task, count) in enumerate(
        [("lyrics_to_song", "lyrics_to_song", 400), ("reference", "reference", 60), ("held_out", "lyrics_to_song", 60)]
    ):
        writer = Writer(vocabulary, tokenizer, np.random.default_rng(seed), shuffled)
        with IndexedWriter(folder / name, {"task": task, "options": {}}) as source:
            for _ in range(count):
                source.add(*writer.document(task == "reference"))
    return folder


def recipe_of(corpus: Path, run: Path, tokens: int, **fields) -> Recipe:
    """A network of two layers over the corpus."""
    content = {
        "name": run.name, "vocabulary": str(corpus / "vocabulary.yaml"), "corpus": str(corpus), "run": str(run),
        "precision": "fp32",
        "network": {"hidden_size": 64, "layers": 2, "attention_heads": 4, "key_value_heads": 2, "ffn_hidden_size": 128,
                    "position_limit": 128, "init_std": 0.1},
        "optimizer": {"beta2": 0.98},
        "phases": [{
            "name": "all", "tokens": tokens, "context_tokens": 128, "batch_sequences": 8, "micro_batch_sequences": 8,
            "learning_rate": {"shape": "cosine", "start": 6e-3, "end": 3e-4},
            "mixture": {"lyrics_to_song": 3, "reference": 1},
        }],
        "watch": {"log_every_steps": 10, "validation": {"source": "held_out", "sequences": 16, "every_steps": 20}},
        "checkpoints": {"every_steps": 100, "keep": 3},
    } | fields  # fmt: skip
    return Recipe.parse(content, run.with_suffix(".yaml"))

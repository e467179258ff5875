"""Small synthetic sources, and a small corpus that sounds."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from encode_cases import OPTIONS, contents, make_songs

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.corpus.build import build_corpus
from megatron_music.corpus.encode import encode_manifest
from megatron_music.corpus.executors import Machines
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.text import train_text_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that several tests import


@pytest.fixture
def write_source() -> Callable[..., Path]:
    """Writes a source whose ids are ``first``, ``first + 1``, ... and whose kinds are the ids modulo 5."""

    def write(prefix: Path, lengths: list[int], first: int = 0, vocabulary: str = "one") -> Path:
        with IndexedWriter(prefix, {"vocabulary": {"name": "synthetic", "fingerprint": vocabulary}}) as writer:
            for length in lengths:
                ids = np.arange(first, first + length, dtype=np.int32)
                writer.add(ids, (ids % 5).astype(np.uint8))
                first += length
        return prefix

    return write


@pytest.fixture
def make_recipe(tmp_path) -> Callable[..., Recipe]:
    """A recipe over the corpus in ``tmp_path``, from (tokens, context, batch, mixture) of each phase."""

    def make(phases: list[tuple[int, int, int, dict]], **fields) -> Recipe:
        content = {
            "name": "small",
            "vocabulary": "vocabulary.yaml",
            "corpus": ".",
            "run": "run",
            "network": {
                "hidden_size": 8,
                "layers": 1,
                "attention_heads": 1,
                "key_value_heads": 1,
                "ffn_hidden_size": 8,
                "position_limit": 4096,
            },
            "phases": [
                {
                    "name": f"phase-{number}",
                    "tokens": tokens,
                    "context_tokens": context,
                    "batch_sequences": batch,
                    "learning_rate": 1e-3,
                    "mixture": mixture,
                }
                for number, (tokens, context, batch, mixture) in enumerate(phases)
            ],
        }
        return Recipe.parse({**content, **fields}, tmp_path / "recipe.yaml")

    return make


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, repository) -> Path:
    """A folder with 20 songs, a vocabulary, a tokenizer and a fitted codec's folder."""
    import building

    folder = tmp_path_factory.mktemp("prepared")
    (folder / "songs" / "codec").mkdir(parents=True)
    (folder / "songs" / "codec" / "codec.json").write_text("{}")
    random = np.random.default_rng(0)
    for number in range(20):
        for track in ("mix", "vocals", "accompaniment"):
            codes_KT = random.integers(0, 256, (8, building.FRAMES)).astype(np.int16)
            np.save(folder / "songs" / f"{number}.{track}.npy", codes_KT)
    building.write_lines(folder, [building.song_line(number) for number in range(20)])
    shutil.copy(repository / "tests" / "data" / "small_vocabulary.yaml", folder / "vocabulary.yaml")
    train_text_tokenizer(
        ["[verse]\nla la\n\n[chorus]\nlo lo\n\n", "folk, female, slow"], folder / "tokenizer.model", 300
    )
    building.write_spec(folder)
    return folder


@pytest.fixture
def workspace(tmp_path, prepared) -> Path:
    shutil.copytree(prepared, tmp_path / "work")
    return tmp_path / "work"


EVIL = "<script>alert(1)</script>"
"""An id, as it could come from the web."""
SUNG_SONGS = [
    # id, language, tags, seconds, lines of lyrics
    ("alone", "de", "folk, female", 14.0, ["la la", "lo lo"]),
    ("band", "en", "folk, male", 15.0, ["la la", "lo lo"]),
    ("choir", "en", "rock, male", 16.0, ["la la", "lo lo"]),
    (EVIL, None, "<b>bold</b>, folk", 17.0, ["<img src=x onerror=alert(2)>", "</pre><script>alert(3)"]),
    ("mumble", "en", "folk", 18.0, ["la"]),
    ("no_band", "fr", "", 19.0, ["la la", "lo lo"]),
    ("test", "de", "folk", 20.0, ["la la", "lo lo"]),
]


def _notes(seconds: float, seed: int) -> np.ndarray:
    """A melody with overtones, float32 at 16 kHz, each note of a loudness of its own."""
    random = np.random.default_rng(seed)
    times = np.arange(4000) / 16_000
    melody = []
    for _ in range(int(seconds * 4)):
        pitch_hz = 110 * 2 ** (random.integers(0, 24) / 12)
        note = sum(np.sin(2 * np.pi * harmonic * pitch_hz * times) / harmonic for harmonic in range(1, 9))
        melody.append(random.uniform(0.05, 0.2) * note * np.exp(-3 * times))
    return np.concatenate(melody).astype(np.float32)


@pytest.fixture(scope="session")
def songs(tmp_path_factory) -> Path:
    """Songs to encode, which no test changes."""
    return make_songs(tmp_path_factory.mktemp("songs"))


@pytest.fixture(scope="session")
def straight(songs, tmp_path_factory) -> dict[str, bytes]:
    """What an undisturbed encoding of them on this machine leaves."""
    out = tmp_path_factory.mktemp("straight") / "codes"
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines(workers=1))
    return contents(out)


@pytest.fixture(scope="session")
def sung_corpus(tmp_path_factory, repository) -> Path:
    """``FOLDER/corpus``, built from the songs above, whose tracks went through an embedded codec into ``codes``."""
    folder = tmp_path_factory.mktemp("sung")
    sounds = {}
    for number, (id, _, _, seconds, _) in enumerate(SUNG_SONGS):
        vocals, accompaniment = _notes(seconds, 2 * number), _notes(seconds, 2 * number + 1)
        sounds[id] = {"vocals_codec": vocals, "instrumental_codec": accompaniment, "codec": vocals + accompaniment}
    del sounds["no_band"]["instrumental_codec"]
    codec = EmbeddedCodec.fit((samples for tracks in sounds.values() for samples in tracks.values()), 3, 256)
    codec.save(folder / "codes" / "codec")
    lines = []
    for number, (id, language, genres, seconds, lyrics) in enumerate(SUNG_SONGS):
        paths = {field: f"{number}.{field}.npy" for field in sounds[id]}
        for field, samples in sounds[id].items():
            np.save(folder / "codes" / paths[field], codec.encode(samples))
        half, end = 350, int(50 * seconds)
        segments = [
            {"line_content": f"[verse]\n{line}\n\n", "codec_frame_start": start, "codec_frame_end": stop}
            for line, start, stop in zip(lyrics, (0, half), (half, end), strict=False)
        ]
        line = {"id": id, "genres": genres, "audio_length_in_sec": seconds, **paths}
        line |= {"language": language} if language else {}
        lines.append(line | {"splitted_lyrics": {"segmented_lyrics": segments}})
    (folder / "codes" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(repository / "tests" / "data" / "small_vocabulary.yaml", folder / "vocabulary.yaml")
    train_text_tokenizer(["[verse]\nla la\n\nlo lo\n\n", "folk, female"], folder / "tokenizer.model", 300)
    manifest = {"manifest": "codes/manifest.jsonl"}
    sources = {
        "cot": manifest | {"task": "lyrics_to_song", "min_lyric_lines": 2},
        "cot_held_out": manifest | {"task": "lyrics_to_song", "split": "held_out"},
        "dual": manifest | {"task": "unconditional", "tracks": "dual"},
        "residual": manifest | {"task": "residual", "codebooks": 3, "min_distinct_codes": 3, "tracks": ["mix"]},
        "residual_rest": manifest
        | {"task": "residual", "codebooks": 3, "min_distinct_codes": 3, "tracks": ["mix"], "repeat_codebook_0": False},
    }
    spec = {"vocabulary": "vocabulary.yaml", "tokenizer": "tokenizer.model", "held_out": ["test"], "sources": sources}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    build_corpus(folder / "spec.yaml", folder / "corpus", processes=1)
    return folder / "corpus"

"""Songs, specs and looks at the result, for the tests that build small corpora."""

import json
from pathlib import Path

import numpy as np
import yaml

from megatron_music.songs.rejects import read_rejects

FRAMES = 1000
SOURCES = {
    "cot": {"manifest": "songs/manifest.jsonl", "task": "lyrics_to_song"},
    "icl": {"manifest": "songs/manifest.jsonl", "task": "reference", "mode": "vocals", "shortest_s": 2, "mean_s": 3},
    "mix": {"manifest": "songs/manifest.jsonl", "task": "unconditional"},
    "residual": {"manifest": "songs/manifest.jsonl", "task": "residual", "min_distinct_codes": 5},
}


def song_line(number: int) -> dict:
    """A song of 20 s in two segments, whose three tracks have code files of their own."""
    halves = [("[verse]\nla la\n\n", 0, FRAMES // 2), ("[chorus]\nlo lo\n\n", FRAMES // 2, FRAMES)]
    return {
        "id": f"song-{number:03d}",
        "codec": f"{number}.mix.npy",
        "vocals_codec": f"{number}.vocals.npy",
        "instrumental_codec": f"{number}.accompaniment.npy",
        "audio_length_in_sec": FRAMES / 50,
        "genres": "folk, female, slow",
        "splitted_lyrics": {
            "segmented_lyrics": [
                {"line_content": text, "codec_frame_start": start, "codec_frame_end": end}
                for text, start, end in halves
            ]
        },
    }


def write_spec(folder: Path, **changes) -> Path:
    spec = {"vocabulary": "vocabulary.yaml", "tokenizer": "tokenizer.model", "sources": SOURCES} | changes
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder / "spec.yaml"


def write_lines(folder: Path, lines: list) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "songs" / "manifest.jsonl").write_text(text)


def contents(corpus: Path) -> dict[str, bytes]:
    """Every visible file of a corpus folder by its relative path."""
    files = (path for path in corpus.rglob("*") if path.is_file())
    named = {str(path.relative_to(corpus)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if not name.startswith(".")}


def rules(corpus: Path, source: str) -> dict[str, str]:
    """Rule by song id (or by line, where there is none) of a source's rejects."""
    rejects = [reject for reject in read_rejects(corpus / "rejects.parquet") if reject.where.startswith(f"{source}: ")]
    return {reject.id or reject.where.rpartition(": ")[2]: reject.rule for reject in rejects}


def write_copy(folder: Path, number: int, of: int, damage: float = 0.0, drop: int = 0) -> dict:
    """A song whose codes are another's, with this share of the codes changed and so many first frames missing."""
    random = np.random.default_rng(number)
    for track in ("mix", "vocals", "accompaniment"):
        codes_KT = np.load(folder / f"{of}.{track}.npy")
        codes_KT = np.where(random.random(FRAMES) < damage, random.integers(0, 256, codes_KT.shape), codes_KT)
        np.save(folder / f"{number}.{track}.npy", np.roll(codes_KT, -drop, axis=1).astype(np.int16))
    return song_line(number)


def add_copies(folder: Path) -> None:
    """Adds to 20 songs some like them: a copy, two re-encodings, a shifted song, one that has little left."""
    songs = folder / "songs"
    copies = [
        write_copy(songs, 20, of=3),
        write_copy(songs, 21, of=3, damage=0.1),
        write_copy(songs, 22, of=7, damage=0.15),
        write_copy(songs, 23, of=11, drop=15),
        write_copy(songs, 24, of=12, damage=0.7),
    ]
    write_lines(folder, [*(song_line(number) for number in range(20)), *copies])

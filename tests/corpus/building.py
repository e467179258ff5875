"""Songs, specs and looks at the result, for the tests that build small corpora."""

import json
from pathlib import Path

import yaml

from megatron_music.songs.manifest import read_rejects

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

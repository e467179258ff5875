"""Songs to encode and ways to run and end an encoding, for tests of its pipeline here and under SLURM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from megatron_music.audio.files import write_audio

TRACK_FIELDS = {"mix": "audio", "vocals": "vocals_audio", "accompaniment": "instrumental_audio"}
FITTED = "embedded, fitted to these songs: to try everything on, not to publish with"
OPTIONS = {"codebooks": 2, "codebook_size": 16, "shard_songs": 2}
KILLER = Path(__file__).parent / "corpus" / "killer"


def make_songs(folder: Path, count: int = 5) -> Path:
    """Songs of about 2 s, their three tracks differing by up to 3 frames, in a manifest in a folder of its own."""
    lines = []
    for number in range(count):
        line = {"id": f"song-{number}", "genres": "folk", "licence": "public domain"}
        for extra, (track, name) in enumerate(TRACK_FIELDS.items()):
            seconds = np.arange(32_000 + 320 * extra) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * 110 * (number + 2) * (extra + 1) * seconds * (1 + 0.2 * seconds))
            write_audio(folder / str(number) / f"{track}.flac", tone.astype(np.float32), 16_000)
            line[name] = f"{number}/{track}.flac"
        segments = [{"line_content": "[verse]\nla\n\n", "codec_frame_start": 10, "codec_frame_end": 91, "offset": 0.2}]
        lines.append(line | {"splitted_lyrics": {"segmented_lyrics": segments}})
    write_lines(folder, lines)
    return folder


def write_lines(folder: Path, lines: list[dict]) -> None:
    """Writes the manifest of a folder of songs."""
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(folder: Path) -> list[dict]:
    """The lines of the manifest of a folder of songs."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there; logs apart."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.parts[0] != "logs"}


def assert_shards_are_whole(out: Path, straight: dict[str, bytes]) -> int:
    """Every shard under its name is the one of an undisturbed run, and a manifest is there only beside all of them.

    Returns the number of shards.
    """
    left = contents(out)
    shards = [name for name in left if name.startswith("codes-")]
    assert [name for name in shards if left[name] != straight[name]] == []
    assert left.get("manifest.jsonl") in (None, straight["manifest.jsonl"])
    if "manifest.jsonl" in left:
        assert sorted(shards) == sorted(name for name in straight if name.startswith("codes-"))
    return len(shards)


def encode_command(songs: Path, out: Path, *options: str) -> list[str]:
    """``megatron-music encode`` with ``OPTIONS``."""
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    return [sys.executable, "-m", "megatron_music", "encode", str(songs / "manifest.jsonl"), str(out), *sizes, *options]


def run_encode(songs: Path, out: Path, *options: str, kill_at: dict | None = None) -> subprocess.CompletedProcess:
    """Runs ``encode_command``, and has it ended by ``killer/sitecustomize.py`` at ``kill_at``; which does happen."""
    environment = dict(os.environ)
    struck = out.parent / f"{out.name}.struck"
    struck.unlink(missing_ok=True)
    if kill_at:
        environment["KILL_AT"] = json.dumps({"count": 1, "after": False, "victim": "self", "once": str(struck),
                                             "signal_name": "SIGKILL"} | kill_at)  # fmt: skip
        environment["PYTHONPATH"] = str(KILLER)
    done = subprocess.run(
        encode_command(songs, out, *options), env=environment, capture_output=True, text=True, start_new_session=True
    )
    assert struck.exists() == bool(kill_at), done.stderr
    return done

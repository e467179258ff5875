"""What a conversion has written, in a line."""

from pathlib import Path

from megatron_music.files import read_json


def written_in_words(folder: str | Path) -> str:
    """Files of weights, their type where ``config.json`` says it, and the size of all files."""
    folder = Path(folder)
    weights = sum(path.suffix in (".safetensors", ".distcp") for path in folder.iterdir())
    config = folder / "config.json"
    dtype = read_json(config).get("dtype") if config.is_file() else None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    noun = "file" if weights == 1 else "files"
    return f"{folder}: {weights} {noun} of weights{f' in {dtype}' if dtype else ''}, {size:,.1f} MB in all"

"""A song from two exported models: lyrics and tags in, stems, mix and all that repeats the song out."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_music.audio.codec import load_codec
from megatron_music.audio.files import write_audio
from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.errors import InputError
from megatron_music.files import atomic_path
from megatron_music.generation.models import ModelFolder, check_pair
from megatron_music.generation.prompt import read_lyrics, read_tags
from megatron_music.generation.sampling import SamplingSettings

if TYPE_CHECKING:
    from megatron_music.audio.codec import Codec
    from megatron_music.generation.stage1 import Stage1Song

TRACKS = ("vocals", "accompaniment")
PEAK = 0.99


def generate_song(
    stage1: Path,
    stage2: Path,
    lyrics: Path,
    tags: Path,
    out: Path,
    *,
    codec: str | None = None,
    weights: str | Path | None = None,
    seed: int = 42,
    settings: SamplingSettings | None = None,
    segments: int | None = None,
    windows_at_once: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Writes ``out/vocals.wav``, ``accompaniment.wav``, ``mix.wav`` and ``song.json``; the folder appears whole.

    The same models, prompt, settings, seed and device give the same tokens. The mix is the sum of the stems; where it
    would clip, stems and mix are made quieter by one factor.

    Args:
        stage1, stage2: folders that `export` wrote.
        lyrics: sections in YuE's form, see ``read_lyrics``.
        tags: one line.
        codec: a codec of the models' vocabulary; None takes its default one.
        weights: the codec's weights; None takes the folder ``codec`` that the models carry.
        segments: sing only so many sections, with all lyrics before them; None sings all.
        windows_at_once: windows of stage 2 side by side, see ``stage2.refine``.
        device: None takes a GPU where there is one.
        dtype: "float32", "bfloat16" or "auto" (as stored); None takes float32 on a CPU and "auto" on a GPU.

    Raises:
        InputError: files, folders or settings that can't make a song, before any network is loaded.
    """
    import torch

    from megatron_music.generation import stage1 as first
    from megatron_music.generation import stage2 as second

    settings = settings or SamplingSettings()
    texts, tag_line = read_lyrics(lyrics), read_tags(tags)
    for option, number in (("segments", segments), ("windows_at_once", windows_at_once)):
        if number is not None and number < 1:
            raise InputError(option, f"{number} {option} make no song", "ask for at least 1")
    refuse_foreign_folder(out, "song.json")
    folders = ModelFolder.open(stage1), ModelFolder.open(stage2)
    check_pair(*folders)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    codec_range = folders[0].vocabulary.codec(codec)
    decoder = open_codec(folders, codec_range.name, weights, device)
    form = second.WindowForm.of(folders[1], codec_range)
    singer = first.Singer(folders[0], folders[0].network(device, dtype), settings, seed, codec_range.name)
    song = singer.sing(tag_line, texts, segments)
    coarse = [song.codes_T(singer.grammar, index) for index in range(len(TRACKS))]
    del singer
    codes = second.refine(folders[1], folders[1].network(device, dtype), coarse, form, windows_at_once)
    stems, gain = mixed([decoder.decode(codes_KT[: decoder.codebooks]) for codes_KT in codes])
    record = {
        "models": {name: _model_record(folder) for name, folder in zip(("stage1", "stage2"), folders, strict=True)},
        "vocabulary": folders[0].vocabulary.name,
        "codec": codec_range.name,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "settings": asdict(settings),
        "tags": tag_line,
        "sample_rate": decoder.sample_rate,
        "duration_s": len(coarse[0]) / decoder.frames_per_second,
        "gain": gain,
        **_token_record(song, texts),
        "codes": {name: codes_KT.tolist() for name, codes_KT in zip(TRACKS, codes, strict=True)},
    }
    with atomic_path(out) as folder:
        folder.mkdir()
        for name, samples in stems.items():
            write_audio(folder / f"{name}.wav", samples, decoder.sample_rate)
        (folder / "song.json").write_text(readable_json(record), encoding="utf-8")


def open_codec(folders: Sequence[ModelFolder], name: str, weights: str | Path | None, device: str) -> "Codec":
    """Loads the codec that turns the models' codes into sound; raises InputError where it lacks weights or fits not."""
    carried = [folder.path / "codec" for folder in folders if (folder.path / "codec").is_dir()]
    decoder = load_codec(name, weights or (carried[0] if carried else None), device)
    size = folders[0].vocabulary.codec(name).codebook_size
    if decoder.codebook_size != size:
        raise InputError(
            weights or carried[0] if carried else name,
            f"has codebooks of {decoder.codebook_size} codes, the models' vocabulary of {size}",
            "name the codec that the training songs were encoded with (--weights)",
        )
    return decoder


def mixed(stems: Sequence[np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """Stems and mix by name, float32 (samples,), and the factor that keeps the loudest of them from clipping."""
    length = min(len(samples) for samples in stems)
    named = {name: samples[:length] for name, samples in zip(TRACKS, stems, strict=True)}
    named["mix"] = sum(named.values())
    peak = max((float(np.abs(samples).max()) for samples in named.values() if length), default=0.0)
    gain = min(1.0, PEAK / peak) if peak > 0 else 1.0
    return {name: (samples * gain).astype(np.float32) for name, samples in named.items()}, gain


def readable_json(content: dict) -> str:
    """Indented JSON whose lists of numbers stand on one line each."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*(-?\d+(?:,\s*-?\d+)*)\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _model_record(folder: ModelFolder) -> dict:
    return {"folder": str(folder.path.resolve()), "fingerprint": folder.fingerprint()}


def _token_record(song: "Stage1Song", texts: Sequence[str]) -> dict:
    frame, segments = 0, []
    for text, segment in zip(texts, song.segments, strict=False):
        end = frame + len(segment.audio) // len(TRACKS)
        segments.append({"text": text, "start_frame": frame, "end_frame": end, **asdict(segment)})
        frame = end
    return {"frames": frame, "header": song.header, "segments": segments}

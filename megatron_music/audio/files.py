"""Reading, writing and resampling audio files."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from megatron_music.errors import InputError
from megatron_music.files import atomic_path

_WRITE_BLOCK_FRAMES = 65_536


def read_audio(path: str | os.PathLike, sample_rate: int, mono: bool = True) -> np.ndarray:
    """Reads any format that libsndfile knows (wav, flac, ogg, mp3, ...) at the sample rate asked for.

    Returns:
        float32, full scale = 1: shape (samples,) with the channels averaged, or (channels, samples) where ``mono`` is
        false.

    Raises:
        InputError: as ``audio_blocks`` does.
    """
    # Channels are averaged on the way: eight of them for ten minutes would take a gigabyte.
    blocks = [(block_SC.mean(axis=1)[:, None] if mono else block_SC, rate) for block_SC, rate in audio_blocks(path)]
    samples_CS = resample(np.concatenate([block_SC for block_SC, _ in blocks]).T, blocks[0][1], sample_rate)
    return samples_CS[0] if mono else samples_CS


def audio_blocks(path: str | os.PathLike, block_s: float = 10.0) -> Iterator[tuple[np.ndarray, int]]:
    """Yields an audio file in blocks, float32 (samples, channels) with full scale = 1, each with the sample rate.

    All blocks but the last have ``round(block_s * rate)`` samples.

    Raises:
        InputError: the file is missing, is not audio, ends before what its header announces, holds no samples, or
            holds samples that are not numbers; perhaps behind some blocks.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "is a folder" if path.is_dir() else "no such file", "check the path")
    read_frames = 0
    try:
        with soundfile.SoundFile(path) as file:
            announced_frames, frames = file.frames, max(1, round(block_s * file.samplerate))
            while len(block_SC := file.read(frames, dtype="float32", always_2d=True)):
                if not np.isfinite(block_SC).all():
                    raise InputError(path, "holds samples that are not finite numbers", "export the file again")
                read_frames += len(block_SC)
                yield block_SC, file.samplerate
    except InputError:
        raise
    except (soundfile.LibsndfileError, OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or error
        raise InputError(path, f"can't be read as audio ({reason})", "use wav, flac, ogg or mp3") from None
    if read_frames == 0:
        raise InputError(path, "holds no samples", "leave the file out or replace it")
    if read_frames < announced_frames:
        found = f"ends after {read_frames} of the {announced_frames} samples that it announces"
        raise InputError(path, found, "copy or export the file again")


def announced_seconds(path: str | os.PathLike) -> float:
    """The length that an audio file's header tells, which nothing was read for; 0 where it tells none."""
    try:
        return soundfile.info(path).duration
    except (soundfile.LibsndfileError, OSError, ValueError, RuntimeError):
        return 0.0


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples float32 (samples,) or (channels, samples) with soxr's high-quality filter.

    The result has about ``samples * to_rate / from_rate`` samples, and at least one where there was one.
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if from_rate == to_rate or samples.shape[-1] == 0:
        return samples
    resampled = soxr.resample(samples.T, from_rate, to_rate).T
    if resampled.shape[-1] == 0:
        # Input shorter than one output sample: soxr rounds it away.
        resampled = samples.mean(axis=-1, keepdims=True)
    return np.ascontiguousarray(resampled, dtype=np.float32)


def write_audio(path: str | os.PathLike, samples: np.ndarray, sample_rate: int, subtype: str = "PCM_16") -> None:
    """Writes (samples,) or (channels, samples) in the format that the file's suffix names, whole or not at all.

    Integer formats clip at full scale. ``subtype`` is libsndfile's sample format; a format that lacks it (ogg, mp3)
    is written in its own default.

    Raises:
        InputError: the suffix names no format that libsndfile writes.
    """
    path = Path(path)
    file_format = path.suffix[1:].upper()
    if file_format not in soundfile.available_formats():
        raise InputError(path, f"'{path.suffix}' is no audio format", "name a .wav, .flac, .ogg or .mp3 file")
    samples_SC = np.atleast_2d(np.asarray(samples, dtype=np.float32)).T
    kept_subtype = subtype if soundfile.check_format(file_format, subtype) else None
    with atomic_path(path) as temporary:
        with soundfile.SoundFile(
            temporary, "w", sample_rate, samples_SC.shape[1], subtype=kept_subtype, format=file_format
        ) as file:
            # libsndfile's Vorbis encoder overflows its stack on minutes of audio written at once.
            for start in range(0, len(samples_SC), _WRITE_BLOCK_FRAMES):
                file.write(samples_SC[start : start + _WRITE_BLOCK_FRAMES])

"""Reading, writing and resampling audio files."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile
import soxr

from megatron_music.audio.containers import audio_parts
from megatron_music.audio.decoders import Decoder, decoder, further_tags
from megatron_music.audio.parts import Part
from megatron_music.errors import InputError
from megatron_music.files import atomic_path

MOST_MISSING_S = 0.5
"""A file may end this much before what it announces: some frames of any codec in use (a frame of FLAC at 8 kHz has
0.5 s), and less than a song's last note."""
_BLOCK_S, _WRITE_BLOCK_FRAMES = 10.0, 65_536


class NoSamples(InputError):
    """An audio file is whole and of no length."""


@dataclass(frozen=True)
class AudioInfo:
    """The length of an audio file, and what its tags say, by names in lower case."""

    duration_s: float
    metadata: dict[str, str]


def read_audio(path: str | os.PathLike, sample_rate: int, mono: bool = True) -> np.ndarray:
    """Reads any format that libsndfile or FFmpeg knows (wav, flac, ogg, mp3, m4a, ...) at the sample rate asked for.

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


def audio_blocks(path: str | os.PathLike, block_s: float = _BLOCK_S) -> Iterator[tuple[np.ndarray, int]]:
    """Yields an audio file in blocks, float32 (samples, channels) with full scale = 1, each with the sample rate.

    All blocks but the last have ``round(block_s * rate)`` samples. Where a file holds several recordings, one behind
    the other, the later ones get the rate and the channels of the first.

    Raises:
        InputError: the file is missing, is not audio, ends more than ``MOST_MISSING_S`` before what its header
            announces, holds no samples, or holds samples that are not numbers; perhaps behind some blocks.
    """
    any_samples = False
    for block_SC, rate in _even(_pieces(path, block_s), block_s):
        if not np.isfinite(block_SC).all():
            raise InputError(path, "holds samples that are not finite numbers", "export the file again")
        any_samples = True
        yield block_SC, rate
    if not any_samples:
        raise _no_samples(path)


def audio_info(path: str | os.PathLike) -> AudioInfo:
    """The length that ``audio_blocks`` reads, and tags; decodes nothing where the header can be trusted.

    Of a file that is damaged within, ``audio_blocks`` may read up to ``MOST_MISSING_S`` less.

    Raises:
        InputError: as ``audio_blocks`` does, but for samples that are not numbers or damaged.
    """
    duration_s, metadata = 0.0, {}
    for part in _parts(path, to_read=False):
        with decoder(part) as opened:
            length_s = opened.length_s
            if length_s is None:
                length_s = sum(len(block_SC) / rate for block_SC, rate in opened.blocks(_BLOCK_S))
            _check_end(part, opened, length_s)
            duration_s += length_s
            metadata = further_tags(part) | opened.metadata | metadata
    if not duration_s:
        raise _no_samples(path)
    return AudioInfo(duration_s, metadata)


def _parts(path: str | os.PathLike, to_read: bool) -> list[Part]:
    path = Path(path)
    if not path.is_file():  # opening a pipe would wait for ever
        raise InputError(path, "is a folder" if path.is_dir() else "no such file", "check the path")
    try:
        if not path.stat().st_size:
            raise InputError(path, "is an empty file", "leave it out or replace it")
        return audio_parts(path, to_read)
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "check the file and its permissions") from None


def _pieces(path: str | os.PathLike, block_s: float) -> Iterator[tuple[np.ndarray, int]]:
    for part in _parts(path, to_read=True):
        with decoder(part) as opened:
            read_s = 0.0
            for block_SC, rate in opened.blocks(block_s):
                read_s += len(block_SC) / rate
                yield block_SC, rate
            _check_end(part, opened, read_s)


def _check_end(part: Part, opened: Decoder, read_s: float) -> None:
    """Raises InputError where more is announced than was read, or more is there than is announced."""
    s_per_byte = read_s / max(part.data_bytes, 1)
    announced_s = (opened.announced_s or 0.0) + part.missing_bytes * s_per_byte
    if announced_s - read_s > MOST_MISSING_S:
        found = f"ends after {read_s:.2f} of the {announced_s:.2f} s that it announces"
        raise InputError(part.path, found, "copy or export the file again")
    if (further_s := part.unknown_bytes * s_per_byte) > MOST_MISSING_S:
        found = f"announces {read_s:.2f} s and goes on behind them for {further_s:.2f} s"
        raise InputError(part.path, found, "cut off what is no audio, or save the whole with an editor that hears it")


def _no_samples(path: str | os.PathLike) -> NoSamples:
    return NoSamples(path, "holds no samples", "leave the file out or replace it")


def _even(pieces: Iterator[tuple[np.ndarray, int]], block_s: float) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of one length out of pieces of any, all with the rate and the channels of the first."""
    held, held_frames = [], 0
    first: tuple[int, int] | None = None
    for (rate, channels), run in groupby(pieces, lambda piece: (piece[1], piece[0].shape[1])):
        first = first or (rate, channels)
        frames = max(1, round(block_s * first[0]))
        for block_SC in _at_rate((block_SC for block_SC, _ in run), rate, channels, first[0]):
            if channels != first[1]:
                block_SC = np.repeat(block_SC.mean(axis=1, keepdims=True), first[1], axis=1)
            held.append(block_SC)
            held_frames += len(block_SC)
            if held_frames >= frames:
                joined_SC = held[0] if len(held) == 1 else np.concatenate(held)
                whole = held_frames // frames * frames
                for start in range(0, whole, frames):
                    yield joined_SC[start : start + frames], first[0]
                held, held_frames = [joined_SC[whole:]], held_frames - whole
    if held_frames:
        yield np.concatenate(held), first[0]


def _at_rate(blocks: Iterator[np.ndarray], rate: int, channels: int, to_rate: int) -> Iterator[np.ndarray]:
    if rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, to_rate, channels)
    for block_SC in blocks:
        yield stream.resample_chunk(block_SC)
    yield stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)


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
        try:
            with soundfile.SoundFile(
                temporary, "w", sample_rate, samples_SC.shape[1], subtype=kept_subtype, format=file_format
            ) as file:
                # libsndfile's Vorbis encoder overflows its stack on minutes of audio written at once.
                for start in range(0, len(samples_SC), _WRITE_BLOCK_FRAMES):
                    file.write(samples_SC[start : start + _WRITE_BLOCK_FRAMES])
        except soundfile.LibsndfileError as error:
            # It keeps to itself what the system said, mostly that the disk is full.
            raise OSError(errno.EIO, f"audio can't be written ({error.error_string.strip('. ')})") from None

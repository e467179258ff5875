"""The two decoders: libsndfile, and FFmpeg's libraries (PyAV) for what libsndfile can't read.

libsndfile comes first, as the codes of older corpora were made of its samples. But it reads an MP3 or FLAC no further
than their headers say, and knows no AAC, Matroska or WMA. FFmpeg does; like libsndfile, it drops the samples that an
encoder put in front and behind (gapless). It is not the only decoder because it rounds MP3 and Vorbis otherwise, and
refuses WAV and AIFF files that libsndfile reads.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import soundfile

from megatron_music.audio.parts import Part
from megatron_music.errors import InputError

_UNKNOWN_FRAMES = 1 << 62
_MOST_CHANNELS = 8  # PyAV crashes on planes beyond those
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_ANNOUNCING = frozenset({_MP4, "matroska,webm", "asf", "flac", "mp3", "wv", "ape", "tta"})
"""Formats, by FFmpeg's names, that tell their length; that of others is guessed from the bit rate."""


class Decoder(Protocol):
    """A part that is open.

    Attributes:
        metadata: what its tags say, by names in lower case.
        length_s: what reading it will give, where that is known without reading.
        announced_s: what its header says, if anything.
    """

    metadata: dict[str, str]
    length_s: float | None
    announced_s: float | None

    def blocks(self, block_s: float) -> Iterator[tuple[np.ndarray, int]]:
        """Yields float32 (samples, channels), at most ``block_s`` long, each with the sample rate."""


def decoder(part: Part) -> AbstractContextManager[Decoder]:
    """Opens a part; raises InputError where it can't be read, perhaps behind some blocks."""
    file = _sndfile(part) if part.trusted else None
    return _ffmpeg(part) if file is None else _libsndfile(part, file)


def _sndfile(part: Part) -> soundfile.SoundFile | None:
    """None where libsndfile can't read the part, or not know its length."""
    try:
        # By its number, a file has no name whose suffix would let libsndfile take any text for an MP3.
        source = os.open(part.path, os.O_RDONLY) if part.is_whole_file else part.open()
        file = soundfile.SoundFile(source, closefd=True)
    except (soundfile.SoundFileError, OSError, ValueError):
        return None
    if file.frames < _UNKNOWN_FRAMES:
        return file
    file.close()
    return None


@contextmanager
def _libsndfile(part: Part, file: soundfile.SoundFile) -> Iterator[Decoder]:
    try:
        with file:
            yield _Sndfile(file)
    except InputError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise _unreadable(part, getattr(error, "error_string", None) or error) from None


@contextmanager
def _ffmpeg(part: Part) -> Iterator[Decoder]:
    import av

    try:
        with _av_container(part) as container:
            stream = container.streams.best("audio")
            if stream is None or stream.codec_context is None:
                raise _unreadable(part, "there is none in it" if stream is None else "FFmpeg has no decoder for it")
            if stream.codec_context.layout.nb_channels > _MOST_CHANNELS:
                raise _unreadable(part, f"it has more than {_MOST_CHANNELS} channels")
            yield _Ffmpeg(container, stream, part)
    except InputError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(part, getattr(error, "strerror", None) or error) from None


@contextmanager
def _av_container(part: Part) -> Iterator[Any]:
    import av

    # As a file object, so that neither a name nor a playlist leads to another file or to the network.
    with part.open() as file, av.open(file, options={"protocol_whitelist": "pipe"}) as container:
        yield container


def further_tags(part: Part) -> dict[str, str]:
    """What the tags of its file say that a part lacks, by names in lower case."""
    import av

    if not part.tags_outside:
        return {}
    try:
        with _av_container(Part(part.path)) as container:
            return {name.lower(): text for name, text in container.metadata.items()}
    except (av.error.FFmpegError, OSError, ValueError):
        return {}


def _unreadable(part: Part, reason: Any) -> InputError:
    return InputError(part.path, f"can't be read as audio ({reason})", "use wav, flac, ogg, mp3 or m4a")


class _Sndfile:
    def __init__(self, file: soundfile.SoundFile):
        self._file = file
        self.metadata = file.copy_metadata()
        self.length_s = self.announced_s = file.frames / file.samplerate

    def blocks(self, block_s: float) -> Iterator[tuple[np.ndarray, int]]:
        frames = max(1, round(block_s * self._file.samplerate))
        while len(block_SC := self._file.read(frames, dtype="float32", always_2d=True)):
            yield block_SC, self._file.samplerate


class _Ffmpeg:
    def __init__(self, container: Any, stream: Any, part: Part):
        self._container, self._stream = container, stream
        tags = dict(container.metadata) | dict(self._stream.metadata)
        self.metadata = {name.lower(): text for name, text in tags.items()}
        self.announced_s = self._announced_s() if part.announces else None
        self.length_s = self.announced_s if self._is_indexed() else None

    def _announced_s(self) -> float | None:
        if self._container.format.name not in _ANNOUNCING:
            return None
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        # What the file announces may be the length of its pictures.
        alone = len(self._container.streams) == 1 and self._container.duration is not None
        return self._container.duration / 1e6 if alone else None

    def _is_indexed(self) -> bool:
        """Whether this is an MP4 file with an index to all of its frames, and they are all there."""
        if self._container.format.name != _MP4 or "itunsmpb" in self.metadata or not self._stream.frames:
            return False
        entries = self._stream.index_entries
        last = entries[-1] if len(entries) == self._stream.frames else None
        return last is not None and last.pos + last.size <= self._container.size

    def blocks(self, block_s: float) -> Iterator[tuple[np.ndarray, int]]:
        import av

        read_frames = 0
        for packet in self._container.demux(self._stream):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                continue  # a damaged frame; its absence counts at the end
            for frame in decoded:
                if frame.layout.nb_channels > _MOST_CHANNELS:
                    continue  # damaged too
                block_SC = _float32(frame)
                if self.length_s is not None:
                    # An MP4 file tells where its last frame's padding starts.
                    block_SC = block_SC[: max(round(self.length_s * frame.sample_rate) - read_frames, 0)]
                read_frames += len(block_SC)
                yield block_SC, frame.sample_rate


def _float32(frame: Any) -> np.ndarray:
    samples = frame.to_ndarray()
    samples_SC = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype.kind == "f":
        return samples_SC.astype(np.float32)
    zero = 128 if samples.dtype.kind == "u" else 0
    return ((samples_SC.astype(np.float64) - zero) / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32)

"""Hearing a document: its audio ids back to codes, track by track, and through the corpus' codec to sound."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.files import write_audio
from megatron_music.corpus.build import CODEC
from megatron_music.corpus.inspect import DocumentReader, Part
from megatron_music.errors import InputError
from megatron_music.vocabulary.kinds import COARSE_KINDS, CODEBOOK_KINDS, Kind
from megatron_music.vocabulary.vocabulary import CodecRange

PEAK = 0.99


@dataclass(frozen=True)
class Span:
    """Audio of a document, from token ``start`` to ``stop``, that is heard in one piece.

    ``codes`` holds int16 (codebooks, frames) by track (``vocal``, ``accompaniment``, ``mix``, ``speech``), several
    tracks being simultaneous and of one length.
    """

    start: int
    stop: int
    codes: dict[str, np.ndarray]

    @property
    def frames(self) -> int:
        """Frames of every track."""
        return next(iter(self.codes.values())).shape[1]


def audio_spans(ids: np.ndarray, kinds: np.ndarray, parts: list[Part], codec: CodecRange) -> list[Span]:
    """The spans of a document that has these ``parts``, in its order.

    A window of stage 2 is one span with all codebooks; codebook 0 comes from its first half where the second lacks it.
    Raises ValueError where an id is no code of the codebook that its kind tells.
    """
    spans: list[Span] = []
    for part in parts:
        if part.form != "audio":
            continue
        start, run_ids, run_kinds = part.start, ids[part.start : part.stop], kinds[part.start : part.stop]
        present = [Kind(kind) for kind in np.unique(run_kinds)]
        tracks = {
            kind.name.lower(): [codec.codes(run_ids[run_kinds == kind])] for kind in present if kind in COARSE_KINDS
        }
        residuals = [
            codec.codes(run_ids[run_kinds == kind], CODEBOOK_KINDS.index(kind) + 1)
            for kind in present
            if kind in CODEBOOK_KINDS
        ]
        if residuals and spans and spans[-1].stop + 1 == start:  # <stage_2> stands between the halves
            coarse = spans.pop()
            start, tracks = coarse.start, tracks or {name: [*codes_KT] for name, codes_KT in coarse.codes.items()}
        if residuals and len(tracks) != 1:
            raise ValueError(f"residual codes at token {part.start} belong to {len(tracks)} tracks, not to one")
        rows = {name: [*coarse, *residuals] for name, coarse in tracks.items()}
        frames = min(len(codes_T) for codes in rows.values() for codes_T in codes)
        codes = {name: np.stack([codes_T[:frames] for codes_T in row]) for name, row in rows.items()}
        spans.append(Span(start, part.stop, codes))
    return spans


def decode_span(span: Span, codec: Codec, frames: int | None = None) -> dict[str, np.ndarray]:
    """Sound of the first ``frames`` (all by default) of a span by track, float32 (samples,)."""
    return {name: codec.decode(codes_KT[: codec.codebooks, :frames]) for name, codes_KT in span.codes.items()}


def without_clipping(sounds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All sounds by one factor quieter where the loudest would clip."""
    peak = max((float(np.abs(samples).max(initial=0)) for samples in sounds.values()), default=0.0)
    gain = min(1.0, PEAK / peak) if peak > 0 else 1.0
    return {name: (samples * gain).astype(np.float32) for name, samples in sounds.items()}


def codec_range(reader: DocumentReader) -> CodecRange:
    """The id range of the codec whose codes a source holds."""
    return reader.vocabulary.codec(reader.source.sidecar.get("codec", {}).get("name"))


def load_codec_of_corpus(reader: DocumentReader, weights: str | Path | None = None) -> Codec:
    """The codec that a source's codes were made with: that in ``weights``, or else the one in the corpus folder.

    Raises InputError where there is none of the two, or where its codebooks are not the vocabulary's.
    """
    expected, carried = codec_range(reader), reader.prefix.parent / CODEC
    if weights is None and carried.is_dir():
        weights = carried  # only a codec that `encode` has fitted travels with a corpus
    codec = load_codec(expected.name, weights)
    if codec.codebook_size != expected.codebook_size:
        what = f"has codebooks of {codec.codebook_size} codes, the corpus of {expected.codebook_size}"
        raise InputError(weights, what, "name the codec that the songs were encoded with (--weights)")
    return codec


def write_document_audio(
    prefix: str | Path, document: int, folder: str | Path, weights: str | Path | None = None
) -> list[Path]:
    """Writes what one document sounds like as wav files and returns their paths.

    ``FOLDER/NAME-DOCUMENT-TRACK.wav`` for each track, all its spans one after another, and, where tracks sound at one
    time, ``-together.wav`` with their sum. Raises InputError where the document holds no audio or can't be decoded.
    """
    reader = DocumentReader(prefix)
    ids, kinds = reader.tokens(document)
    parts = reader.parts(ids, kinds)
    if not any(part.form == "audio" for part in parts):
        raise InputError(prefix, f"document {document} holds no audio", "name another document or leave out --listen")
    codec = load_codec_of_corpus(reader, weights)
    tracks: dict[str, list[np.ndarray]] = {}
    try:
        for span in audio_spans(ids, kinds, parts, codec_range(reader)):
            sounds = decode_span(span, codec)
            together = {"together": np.sum(list(sounds.values()), axis=0)} if len(sounds) > 1 else {}
            for name, samples in {**sounds, **together}.items():
                tracks.setdefault(name, []).append(samples)
    except ValueError as error:
        raise InputError(prefix, f"document {document} can't be decoded ({error})", "build the source again") from None
    sounds = without_clipping({name: np.concatenate(samples) for name, samples in tracks.items()})
    paths = {name: Path(folder) / f"{reader.prefix.name}-{document}-{name}.wav" for name in sounds}
    for name, path in paths.items():
        write_audio(path, sounds[name], codec.sample_rate)
    return list(paths.values())

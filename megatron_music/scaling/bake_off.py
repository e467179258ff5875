"""`predict compare FILE`: the same songs through several codecs, and what a language model makes of their codes.

Every codec and every track of a song is measured once and kept below ``OUT/measured`` under a fingerprint of what it
depends on: a run that was killed goes on with the song that it was at, and a codec that is added is measured alone.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.audio.files import read_audio
from megatron_music.corpus import fingerprint
from megatron_music.corpus.workplace import workplace
from megatron_music.evaluation import reconstruction as measures
from megatron_music.files import read_json, write_json
from megatron_music.progress import track as progress
from megatron_music.scaling.code_losses import code_losses
from megatron_music.scaling.contenders import BakeOff, Contender, whole
from megatron_music.scaling.recognition import Hearing, word_errors
from megatron_music.songs.lyrics import lyrics_text
from megatron_music.songs.song import Song

FORMAT, VERSION = "megatron-music comparison", 1
_MEASURING = 1
"""Raised whenever the same audio would be measured otherwise, so that what is kept is measured again."""


def run_bake_off(path: str | Path, out: str | Path, device: str = "cpu") -> dict[str, Any]:
    """Measures what is not there yet; returns the comparison, which ``out/comparison.json`` holds.

    Raises InputError before anything is measured, where the file, a song, a codec or a run is no good.
    """
    bake_off = BakeOff.read(path, device)
    losses = {one.name: code_losses(bake_off.path, one) for one in bake_off.contenders}
    hearing, missing = Hearing.of(bake_off, device)
    with workplace(out) as out:
        kept = Path(out) / "measured"
        songs = [(song, track) for song in bake_off.songs for track in bake_off.tracks]
        jobs = [(one, song, track) for one in bake_off.contenders for song, track in songs]
        found = [_kept(bake_off, *job, kept, hearing) for job in progress(jobs, "measuring codecs")]
        codecs = {}
        for one in bake_off.contenders:
            rows = [row for (of, _, _), row in zip(jobs, found, strict=True) if of is one]
            codecs[one.name] = _codec(bake_off, one, rows) | losses[one.name]
        comparison = {
            "format": FORMAT,
            "version": VERSION,
            "songs": [song.id for song in bake_off.songs],
            "tracks": bake_off.tracks,
            "seconds": bake_off.file.seconds,
            "sample_rate": bake_off.sample_rate,
            "codecs": codecs,
            "missing": [*missing, *_missing_losses(bake_off)],
        }
        write_json(Path(out) / "comparison.json", comparison)
    return comparison


def _kept(
    bake_off: BakeOff, one: Contender, song: Song, track: str, folder: Path, hearing: Hearing | None
) -> dict[str, Any]:
    """The row of one codec, song and track, measured now where it is not kept; words heard are kept apart."""
    seconds = bake_off.file.seconds
    source = [fingerprint.of_stat(song.audio_path(track)), str(song.audio_path(track).resolve()), track, seconds]
    made = [one.song_identity(song, track), one.range.name, one.range.codebooks, source]
    path = folder / f"{fingerprint.of_value([_MEASURING, made, bake_off.sample_rate])}.json"
    decoded = None
    if not path.is_file():
        codes_KT, decoded = one.rebuild(song, track, seconds)
        write_json(path, _measured(bake_off, one, song, track, codes_KT, decoded))
    row = read_json(path)
    lyrics = lyrics_text(song) if track != "accompaniment" else ""
    if hearing is not None and lyrics:
        listener = [hearing.identity, song.language]
        after = folder / f"{fingerprint.of_value(['heard', made, listener])}.json"
        if not after.is_file():
            decoded = one.rebuild(song, track, seconds)[1] if decoded is None else decoded
            write_json(after, hearing.words(decoded, one.sample_rate, song.language))
        before = folder / f"{fingerprint.of_value(['heard', source, listener])}.json"
        if not before.is_file():
            samples = read_audio(song.audio_path(track), hearing.sample_rate)
            write_json(before, hearing.words(samples, hearing.sample_rate, song.language))
        row["words"] = {
            when: word_errors(lyrics, read_json(path)) for when, path in (("before", before), ("after", after))
        }
    return row | {"song": song.id, "track": track}


def _measured(
    bake_off: BakeOff, one: Contender, song: Song, track: str, codes_KT: np.ndarray, decoded: np.ndarray
) -> dict[str, Any]:
    """What is measured of one track: ``measures``, ``bands``, ``seconds``, ``frames`` and ``counts`` of the codes."""
    rate = bake_off.sample_rate
    reference = read_audio(song.audio_path(track), rate)[: whole(bake_off.file.seconds, rate)]
    seconds = len(reference) / rate
    reference, decoded = measures.at_common_rate(reference, rate, decoded, one.sample_rate, rate)
    found: dict[str, float | None] = {
        "mel_distance_db": measures.mel_distance_db(reference, decoded, rate),
        "stft_distance": measures.stft_distance(reference, decoded, rate),
        "si_sdr_db": measures.si_sdr_db(reference, decoded),
    }
    if track == "vocals":
        found |= measures.pitch_errors(reference, decoded, rate)
    counts_KC = [np.bincount(codes_T, minlength=one.range.codebook_size).tolist() for codes_T in codes_KT]
    return {
        "measures": {name: value for name, value in found.items() if value is not None},
        "bands": measures.log_spectral_distance_db(reference, decoded, rate),
        "seconds": seconds,
        "frames": codes_KT.shape[1],
        "counts": counts_KC,
    }


def _codec(bake_off: BakeOff, one: Contender, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a codec comes to over all songs."""
    counts_KC = sum(np.array(row["counts"]) for row in rows)
    codebooks, rate = len(counts_KC), sum(row["frames"] for row in rows) / sum(row["seconds"] for row in rows)
    entropies_K = measures.code_entropy_bits(counts_KC)
    return {
        "codec": one.range.name,
        "sample_rate": one.sample_rate,
        "frames_per_second": rate,
        "codebooks": codebooks,
        "codebook_size": one.range.codebook_size,
        "codes_used": (counts_KC > 0).sum(axis=1).tolist(),
        "bits_per_second": codebooks * float(np.log2(one.range.codebook_size)) * rate,
        "entropy_bits_per_second": float(entropies_K.sum()) * rate,
        "tracks": {track: _of_track([row for row in rows if row["track"] == track]) for track in bake_off.tracks},
        "songs": [{key: row[key] for key in ("song", "track", "measures", "bands", "words") if key in row}
                  for row in rows],
    }  # fmt: skip


def _of_track(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over songs; word errors are of all songs' words together."""
    found: dict[str, Any] = {of: _means(row[of] for row in rows) for of in ("measures", "bands")}
    words = [row["words"] for row in rows if "words" in row]
    count = sum(pair["before"]["words"] for pair in words)
    if count:
        before, after = (sum(pair[when]["errors"] for pair in words) / count for when in ("before", "after"))
        found["word_error_before"], found["word_error_after"] = before, after
    return found


def _means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _missing_losses(bake_off: BakeOff) -> list[dict[str, str]]:
    without = [one.name for one in bake_off.contenders if one.entry.run is None]
    why = f"no run is named for {', '.join(without)}"
    how = "train a small run on each codec's codes and name its folder as `run`"
    return [{"measure": "loss and invalid tokens", "why": why, "how": how}] if without else []

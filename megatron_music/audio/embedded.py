"""The embedded codec: log-mel frames, residual k-means fitted on the corpus itself, and Griffin-Lim back to sound.

It needs no download and no GPU, and it stands where no trained codec was named. 16 kHz, 50 frames a second. What the
choices are for:

- Code 0 of the first codebook is silence and code 0 of every further one is "no correction", both exactly. So silence
  decodes to silence, and a further codebook can never raise the error of a frame.
- The first codebook is read along the steadiest path, not frame by frame: on held-out real music a language model
  then meets a third fewer changes of code for 0.3% more error, which the further codebooks take up.
- log(amplitude + floor) rather than log(max(amplitude, floor)): what lies below the floor (-70 dB) fades out smoothly
  and takes no codes.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from megatron_music.audio.codec import checked_codes
from megatron_music.audio.kmeans import k_means, nearest, steadiest
from megatron_music.audio.spectrum import ShortTimeSpectrum, mel_filters
from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json, write_json
from megatron_music.progress import track

MAX_CODEBOOKS, MAX_CODEBOOK_SIZE = 8, 1024
MAX_FIT_FRAMES = 50_000

_SAMPLE_RATE, _HOP_SAMPLES, _WINDOW_SAMPLES, _MEL_BANDS, _FLOOR = 16_000, 320, 1024, 128, 3e-4
_ANALYSIS = {
    "codec": "embedded",
    "version": 1,
    "sample_rate": _SAMPLE_RATE,
    "hop_samples": _HOP_SAMPLES,
    "window_samples": _WINDOW_SAMPLES,
    "mel_bands": _MEL_BANDS,
    "floor": _FLOOR,
}
_LOG_FLOOR = float(np.log(_FLOOR))
_FIT_ITERATIONS = 12
_GRIFFIN_LIM_ITERATIONS = 32
# A change of the first code must pay for itself by this share of the codebook's mean squared error.
_CHANGE_COST_SHARE = 0.25
# Mean squared distance (nepers^2, 0.9 dB) from the floor below which a frame counts as silence and fits nothing.
_SILENCE_DISTANCE = 0.01


class EmbeddedCodec:
    """A fitted codec; satisfies ``megatron_music.audio.codec.Codec``.

    Args:
        codebooks_KCM: centroids, float32 (codebooks, codes, mel bands), the first codebook's of log-mel frames and
            each further one's of what the codebooks before it leave over.
        change_cost: what a change of the first code costs in squared distance (``kmeans.steadiest``).
    """

    name = "embedded"
    sample_rate = _SAMPLE_RATE
    frames_per_second = _SAMPLE_RATE / _HOP_SAMPLES

    def __init__(self, codebooks_KCM: np.ndarray, change_cost: float):
        self.codebooks_KCM = codebooks_KCM
        self.change_cost = change_cost
        self.codebooks, self.codebook_size = codebooks_KCM.shape[:2]
        self._spectrum = ShortTimeSpectrum(_WINDOW_SAMPLES, _HOP_SAMPLES)
        self._filters_MF = mel_filters(_MEL_BANDS, _WINDOW_SAMPLES, _SAMPLE_RATE)
        self._inverse_filters_FM = np.linalg.pinv(self._filters_MF)

    @classmethod
    def fit(cls, waveforms: Iterable[np.ndarray], codebooks: int = 8, codebook_size: int = 1024, seed: int = 0) -> Self:
        """Fits the codebooks on 16 kHz waveforms, which are read once, one at a time.

        At most ``MAX_FIT_FRAMES`` audible frames, drawn evenly from all of them, are kept in memory. The same
        waveforms in the same order and the same seed give the same codec.

        Raises:
            InputError: a number of codebooks or codes that the codec does not have, or too little audible audio.
        """
        if not 1 <= codebooks <= MAX_CODEBOOKS:
            mend = f"ask for 1 to {MAX_CODEBOOKS} (--codebooks)"
            raise InputError("embedded codec", f"has no {codebooks} codebooks", mend)
        if not 2 <= codebook_size <= MAX_CODEBOOK_SIZE:
            found = f"has no codebooks of {codebook_size} codes"
            raise InputError("embedded codec", found, f"ask for 2 to {MAX_CODEBOOK_SIZE} (--codebook-size)")
        generator = np.random.default_rng(seed)
        unfitted = cls(np.zeros((codebooks, codebook_size, _MEL_BANDS), np.float32), change_cost=0.0)
        residual_NM = unfitted._draw_audible_frames(waveforms, generator)
        if len(residual_NM) < codebook_size:
            found = f"can't fit {codebook_size} codes to {len(residual_NM)} audible frames (20 ms each)"
            raise InputError("embedded codec", found, "give more audio, or smaller codebooks (--codebook-size)")
        change_cost = 0.0
        for codebook, codebook_CM in enumerate(track(unfitted.codebooks_KCM, "fitting codebooks", codebooks)):
            first_M = np.full(_MEL_BANDS, _LOG_FLOOR if codebook == 0 else 0.0, np.float32)
            codebook_CM[:] = k_means(residual_NM, codebook_size, first_M, _FIT_ITERATIONS, generator)
            indices_N, distances_N = nearest(residual_NM, codebook_CM)
            if codebook == 0:
                change_cost = _CHANGE_COST_SHARE * float(distances_N.mean())
            residual_NM = residual_NM - codebook_CM[indices_N]
        return cls(unfitted.codebooks_KCM, change_cost)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """float32 (S,) at 16 kHz -> int16 (codebooks, ceil(S / 320))."""
        residual_TM = self._log_mel(samples)
        codes_KT = np.empty((self.codebooks, len(residual_TM)), np.int16)
        for codebook, centroids_CM in enumerate(self.codebooks_KCM):
            if codebook == 0:
                codes_T = steadiest(residual_TM, centroids_CM, self.change_cost)
            else:
                codes_T, _ = nearest(residual_TM, centroids_CM)
            residual_TM = residual_TM - centroids_CM[codes_T]
            codes_KT[codebook] = codes_T
        return codes_KT

    def encode_batch(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 (S,) each -> what ``encode`` gives of each; nothing here is faster for many at once."""
        return [self.encode(samples) for samples in batch]

    def decode(self, codes_KT: np.ndarray) -> np.ndarray:
        """int (1 to ``codebooks``, T) -> float32 (T * 320,) at 16 kHz; the same on every call.

        Raises:
            ValueError: more codebooks than the codec has, or a code out of range.
        """
        codes_KT = checked_codes(codes_KT, self.codebooks, self.codebook_size)
        if codes_KT.size == 0:
            return np.zeros(0, np.float32)
        log_mel_TM = np.zeros((codes_KT.shape[1], _MEL_BANDS), np.float32)
        for codes_T, centroids_CM in zip(codes_KT, self.codebooks_KCM, strict=False):
            log_mel_TM += centroids_CM[codes_T]
        # Codes that never stood together can sum to any level: no band may be louder than a full-scale sine.
        mel_TM = np.maximum(np.exp(np.minimum(log_mel_TM, 0)) - np.float32(_FLOOR), 0)
        amplitudes_TF = np.maximum(mel_TM @ self._inverse_filters_FM.T, 0)
        return self._spectrum.griffin_lim(amplitudes_TF, _GRIFFIN_LIM_ITERATIONS)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes ``codec.json`` and ``codebooks.safetensors``; the folder appears whole."""
        tensors = save_tensors({"codebooks": self.codebooks_KCM})
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / "codebooks.safetensors").write_bytes(tensors)
            description = _ANALYSIS | {
                "codebooks": self.codebooks,
                "codebook_size": self.codebook_size,
                "change_cost": self.change_cost,
                "sha256": hashlib.sha256(tensors).hexdigest(),
            }
            write_json(temporary / "codec.json", description)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Self:
        """Reads what ``save`` wrote.

        Raises:
            InputError: a file is missing, damaged or does not belong to the other, or another version wrote them.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(folder, "no such folder", "name a folder that holds an embedded codec")
        description = read_json(folder / "codec.json")
        fields = {"codebooks": int, "codebook_size": int, "change_cost": float, "sha256": str}
        for field, kind in fields.items():
            if not isinstance(description, dict) or not isinstance(description.get(field), kind):
                raise InputError(folder / "codec.json", f"lacks the field {field}", "fit the codec again")
        for field, value in _ANALYSIS.items():
            if description.get(field) != value:
                found = f"{field} is {description.get(field)!r} where this version has {value!r}"
                raise InputError(folder / "codec.json", found, "fit the codec again")
        path = folder / "codebooks.safetensors"
        try:
            tensors = path.read_bytes()
            codebooks_KCM = load_tensors(tensors)["codebooks"]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(path, f"can't be read ({error})", "fit the codec again") from None
        if hashlib.sha256(tensors).hexdigest() != description["sha256"]:
            raise InputError(path, "is not the file that codec.json describes", "fit the codec again")
        if codebooks_KCM.shape != (description["codebooks"], description["codebook_size"], _MEL_BANDS):
            raise InputError(path, f"holds codebooks of shape {codebooks_KCM.shape}", "fit the codec again")
        return cls(codebooks_KCM, description["change_cost"])

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        """float32 (S,) -> log-mel frames float32 (ceil(S / 320), mel bands), silence being ``_LOG_FLOOR``."""
        samples = np.asarray(samples, np.float32)
        if len(samples) == 0:
            return np.zeros((0, _MEL_BANDS), np.float32)
        return np.log(np.abs(self._spectrum(samples)) @ self._filters_MF.T + np.float32(_FLOOR))

    def _draw_audible_frames(self, waveforms: Iterable[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        """At most ``MAX_FIT_FRAMES`` of all audible frames, each as likely as any other: float32 (N, mel bands).

        Every frame draws a key and the smallest keys stay, so that the number of frames need not be known.
        """
        kept_NM = np.zeros((0, _MEL_BANDS), np.float32)
        keys_N = np.zeros(0)
        for samples in waveforms:
            frames_TM = self._log_mel(samples)
            frames_TM = frames_TM[((frames_TM - _LOG_FLOOR) ** 2).mean(axis=1) > _SILENCE_DISTANCE]
            keys_N = np.concatenate([keys_N, generator.random(len(frames_TM))])
            kept_NM = np.concatenate([kept_NM, frames_TM])
            if len(keys_N) > MAX_FIT_FRAMES:
                smallest = np.argpartition(keys_N, MAX_FIT_FRAMES)[:MAX_FIT_FRAMES]
                keys_N, kept_NM = keys_N[smallest], kept_NM[smallest]
        return kept_NM

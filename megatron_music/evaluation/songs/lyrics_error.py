"""Whether a song's words are those of its lyrics: error rates of what a speech recogniser hears.

The audio is heard in windows of 30 s, one by one. Words are compared as ``songs/alignment`` does: folded case, no
accents or punctuation; scripts that write no spaces count sign by sign.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_music.errors import InputError
from megatron_music.songs.alignment import normalised_words
from megatron_music.weights import require_content

SAMPLE_RATE = 16_000
WINDOW_S = 30.0


class Recogniser(Protocol):
    """Hears words."""

    def hear(self, samples: np.ndarray, language: str | None) -> str:
        """The text of float32 (S,) at 16 kHz, at most 30 s; a language of None is found out, where it can be.

        Raises:
            InputError: the model failed on this audio.
        """
        ...


def load_recogniser(name: str, device: str = "cpu") -> Recogniser:
    """A recogniser by its weights.

    Args:
        name: a folder of a Whisper converted to CTranslate2, or a ``.nemo`` file; ``nvidia/...`` is a NeMo model and
            any other ``owner/name`` a Whisper for CTranslate2, both on the hub.

    Raises:
        InputError: weights or the package are missing, or the weights can't be loaded.
    """
    if name.endswith(".nemo") or (name.startswith("nvidia/") and not Path(name).exists()):
        return NemoRecogniser(name, device)
    return WhisperRecogniser(name, device)


class WhisperRecogniser:
    """Whisper on CTranslate2, with the settings of the annotator ``transcribe``."""

    def __init__(self, weights: str, device: str = "cpu"):
        from megatron_music.songs.annotators import load_annotator

        self._annotator = load_annotator("transcribe", {"weights": weights}, device)

    def hear(self, samples: np.ndarray, language: str | None) -> str:
        from megatron_music.songs.song import Rejected

        try:
            words, _ = self._annotator.transcribe(samples, language)
        except Rejected as error:
            raise InputError("--recogniser", f"failed ({error.detail})") from None
        return "".join(word for _, _, word in words)


class NemoRecogniser:
    """A speech recogniser of NVIDIA NeMo; it knows its language itself."""

    def __init__(self, weights: str, device: str = "cpu"):
        try:
            from nemo.collections.asr.models import ASRModel
        except ImportError as error:
            mend = "pip install 'megatron-music[nemo]'"
            raise InputError(f"--recogniser {weights}", f"needs nemo-toolkit ({error})", mend) from None
        if weights.endswith(".nemo"):
            require_content(weights, "name a .nemo file, or a model on the hub")
        load = ASRModel.restore_from if weights.endswith(".nemo") else ASRModel.from_pretrained
        try:
            self._model = load(weights, map_location=device).eval()
        except Exception as error:  # NeMo, its configurations and the hub raise many types
            raise InputError(weights, f"can't be loaded by NeMo ({error})", "check the name or the file") from None

    def hear(self, samples: np.ndarray, language: str | None) -> str:
        try:
            (heard,) = self._model.transcribe([samples], batch_size=1, verbose=False)
        except Exception as error:
            raise InputError("--recogniser", f"failed ({error})") from None
        return getattr(heard, "text", heard)


@dataclass(frozen=True)
class LyricsError:
    """Errors of a song.

    Attributes:
        word_error, character_error: substitutions, deletions and insertions over the length of the lyrics, in
            percent; above 100 where more is heard than was written.
        windows: for each 30 s: ``start``, ``end``, ``words`` of the lyrics that fall into it and ``errors``.
        transcript: what was heard, window by window.
    """

    word_error: float
    character_error: float
    windows: list[dict[str, Any]]
    transcript: list[str]


def hear_words(recogniser: Recogniser, samples: np.ndarray, language: str | None) -> list[str]:
    """What is heard in each window of float32 (S,) at 16 kHz; nothing in those that are digital silence."""
    size = round(WINDOW_S * SAMPLE_RATE)
    windows = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [recogniser.hear(window, language).strip() if window.any() else "" for window in windows]


def lyrics_error(lyrics: str, transcript: list[str]) -> LyricsError | None:
    """Error rates of a transcript by windows; None where the lyrics hold no words.

    A word of the lyrics falls into the window in which it was heard; one that was not heard into that of the word
    before it.
    """
    import jiwer

    reference = normalised_words(lyrics)
    if not reference:
        return None
    heard_by_window = [normalised_words(text) for text in transcript]
    heard = [word for words in heard_by_window for word in words]
    window_of = [window for window, words in enumerate(heard_by_window) for _ in words]
    counts, errors = (np.zeros(max(1, len(transcript)), int) for _ in range(2))
    words = jiwer.process_words(" ".join(reference), " ".join(heard))
    window = 0
    for chunk in words.alignments[0]:
        for index in range(max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)):
            if chunk.hyp_start_idx + index < chunk.hyp_end_idx:
                window = window_of[chunk.hyp_start_idx + index]
            counts[window] += chunk.ref_start_idx + index < chunk.ref_end_idx
            errors[window] += chunk.type != "equal"
    characters = jiwer.process_characters(" ".join(reference), " ".join(heard))
    return LyricsError(
        word_error=100 * words.wer,
        character_error=100 * characters.cer,
        windows=[
            {"start": at * WINDOW_S, "end": (at + 1) * WINDOW_S, "words": int(count), "errors": int(wrong)}
            for at, (count, wrong) in enumerate(zip(counts, errors, strict=True))
        ],
        transcript=transcript,
    )

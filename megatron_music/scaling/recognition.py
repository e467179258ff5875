"""What a codec costs a speech recogniser: the words that it gets wrong after the codec, beside those before."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from megatron_music.audio.files import resample
from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.evaluation.songs.lyrics_error import SAMPLE_RATE, hear_words, load_recogniser, lyrics_error
from megatron_music.scaling.contenders import BakeOff
from megatron_music.songs.lyrics import lyrics_text

_MEASURE = "word errors"
_PACKAGES = "faster_whisper", "jiwer"


class Hearing:
    """A recogniser, and ``identity``, a fingerprint of it."""

    sample_rate = SAMPLE_RATE

    def __init__(self, weights: str, language: str | None, device: str):
        self._recogniser, self._language = load_recogniser(weights, device), language
        path = Path(weights)
        made_of = (
            fingerprint.of_folder(path) if path.is_dir() else fingerprint.of_file(path) if path.is_file() else weights
        )
        self.identity = fingerprint.of_value([made_of, language])

    @classmethod
    def of(cls, bake_off: BakeOff, device: str) -> "tuple[Hearing | None, list[dict[str, str]]]":
        """The recogniser of a file; None, and what to do about it, where word errors can't be measured.

        Raises InputError where weights are named that can't be loaded.
        """
        entry = bake_off.file.recogniser
        if entry is None:
            how = "name `recogniser: {weights: FOLDER}`, such as of Systran/faster-whisper-large-v3"
            return None, [{"measure": _MEASURE, "why": "no recogniser is named", "how": how}]
        lacking = [package for package in _PACKAGES if find_spec(package) is None]
        if lacking:
            why, how = f"{lacking[0]} is not installed", "pip install 'megatron-music[evaluation]'"
            return None, [{"measure": _MEASURE, "why": why, "how": how}]
        beside = bake_off.path.resolve().parent / Path(entry.weights).expanduser()
        try:
            hearing = cls(str(beside) if beside.exists() else entry.weights, entry.language, device)
        except InputError as error:
            raise InputError(f"{bake_off.path}: recogniser: {error.where}", error.what, error.mend) from None
        if bake_off.file.seconds is not None:
            why = "where in the lyrics the first seconds of a song end is not known"
            return None, [{"measure": _MEASURE, "why": why, "how": "leave `seconds` out"}]
        if not any(lyrics_text(song) for song in bake_off.songs):
            how = "give the songs segments with lyrics"
            return None, [{"measure": _MEASURE, "why": "no song has lyrics", "how": how}]
        return hearing, []

    def words(self, samples: np.ndarray, sample_rate: int, language: str | None) -> list[str]:
        """What is heard in float32 (S,), for each 30 s."""
        return hear_words(self._recogniser, resample(samples, sample_rate, SAMPLE_RATE), self._language or language)


def word_errors(lyrics: str, heard: list[str]) -> dict[str, int]:
    """``errors`` (substituted, missing and added words) and ``words`` of the lyrics."""
    found = lyrics_error(lyrics, heard)
    windows = found.windows if found is not None else []
    return {name: sum(window[name] for window in windows) for name in ("errors", "words")}

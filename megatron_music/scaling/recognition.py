"""What a codec costs a speech recogniser: the words that it gets wrong after the codec, beside those before."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.audio.files import resample
from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.scaling.contenders import BakeOff, RecogniserEntry
from megatron_music.songs.lyrics import lyrics_text
from megatron_music.songs.song import Rejected

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MEASURE = "word errors"
_PACKAGES = "faster_whisper", "jiwer"


class Recogniser:
    """Whisper, as the annotator ``transcribe`` runs it: the same words on every call."""

    def __init__(self, entry: RecogniserEntry, weights: str, device: str):
        from megatron_music.songs.annotators.transcribe import SAMPLE_RATE, Transcribe

        options = Transcribe.Options(weights=weights, beam=entry.beam, language=entry.language or "")
        self._transcribe, self.sample_rate = Transcribe(options, device), SAMPLE_RATE
        self._language = entry.language
        folder = Path(weights)
        made_of = fingerprint.of_folder(folder) if folder.is_dir() else weights
        self.identity = fingerprint.of_value([made_of, entry.beam, entry.language])

    @classmethod
    def of(cls, bake_off: BakeOff, device: str) -> "tuple[Recogniser | None, list[dict[str, str]]]":
        """The recogniser of a file; None, and what to do about it, where word errors can't be measured.

        Raises InputError where weights are named that can't be loaded.
        """
        entry = bake_off.file.recogniser
        lacking = [package for package in _PACKAGES if find_spec(package) is None]
        if entry is None:
            how = "name `recogniser: {weights: FOLDER}`, such as of Systran/faster-whisper-large-v3"
            return None, [{"measure": _MEASURE, "why": "no recogniser is named", "how": how}]
        if lacking:
            why, how = f"{lacking[0]} is not installed", "pip install 'megatron-music[evaluation]'"
            return None, [{"measure": _MEASURE, "why": why, "how": how}]
        beside = bake_off.path.resolve().parent / Path(entry.weights).expanduser()
        try:
            recogniser = cls(entry, str(beside) if beside.exists() else entry.weights, device)
        except InputError as error:
            raise InputError(f"{bake_off.path}: recogniser: {error.where}", error.what, error.mend) from None
        if bake_off.file.seconds is not None:
            why = "where in the lyrics the first seconds of a song end is not known"
            return None, [{"measure": _MEASURE, "why": why, "how": "leave `seconds` out"}]
        if not any(lyrics_text(song) for song in bake_off.songs):
            how = "give the songs segments with lyrics"
            return None, [{"measure": _MEASURE, "why": "no song has lyrics", "how": how}]
        return recogniser, []

    def words(self, samples: np.ndarray, sample_rate: int, language: str | None) -> str:
        """What is heard in float32 (S,); the empty text where the model fails on it."""
        heard = resample(samples, sample_rate, self.sample_rate)
        try:
            words, _ = self._transcribe.transcribe(heard, self._language or language)
        except Rejected:
            return ""
        return "".join(word for _, _, word in words)


def word_error(lyrics: str, heard: str) -> dict[str, Any]:
    """``errors`` (substituted, missing and added words) and ``words`` of the lyrics, letters and digits alone."""
    import jiwer

    true, said = (" ".join(_WORD.findall(text.casefold())) for text in (lyrics, heard))
    found = jiwer.process_words(true, said)
    return {"errors": found.substitutions + found.deletions + found.insertions, "words": len(true.split())}

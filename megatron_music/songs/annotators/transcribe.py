"""What is sung, word by word with times, by Whisper on CTranslate2 (faster-whisper)."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from megatron_music.errors import InputError
from megatron_music.pretrained import HUB_NAME, missing_weights
from megatron_music.songs.annotators import common
from megatron_music.songs.song import Rejected, Song

SAMPLE_RATE = 16_000
_EXAMPLE = "Systran/faster-whisper-large-v3"
_NEEDED_FILES = ("model.bin", "config.json", "tokenizer.json")


class Transcribe:
    """Adds ``transcript``, a list of ``[start, end, word]`` in seconds, and ``transcript_language``.

    A word stands as Whisper gives it, with the space before it that its language writes: joined, the words are the
    text. Times are Whisper's, by its cross attention: good to some tenths of a second on singing, and worse on long
    held notes. Voice detection is off because it takes singing for music. Each 30 s are transcribed without the text
    before them, which costs some accuracy and keeps one misheard chorus from being repeated to the end. Whisper's
    second tries, at higher temperatures, are off: a song has the same transcript in every run, and a stretch on which
    the search goes round in circles stays that way, for ``lyrics_match`` to show.
    """

    name = "transcribe"

    class Options(common.NetworkOptions):
        """Options of ``transcribe``.

        Attributes:
            weights: a folder of a Whisper converted to CTranslate2, with its ``tokenizer.json``; or a name on the hub.
            track: what is heard; ``auto`` is the vocals where the song has them, else the mix.
            beam: width of the beam search.
            language: ISO 639-1 code; empty for the song's own or, where it has none, the one that Whisper hears.
            precision: CTranslate2's compute type, such as float16 or int8.
        """

        track: Literal["auto", "mix", "vocals"] = "auto"
        beam: PositiveInt = 5
        language: str = ""
        precision: str = "default"

    def __init__(self, options: "Transcribe.Options", device: str):
        self.options = options
        weights = common.needed_weights(self.name, options.weights, "a CTranslate2 folder", _EXAMPLE)
        whisper = common.import_package(self.name, "faster_whisper", "faster-whisper")
        folder = Path(weights)
        if folder.is_dir():
            for name in _NEEDED_FILES:
                if not (folder / name).is_file():
                    mend = "ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json makes all"
                    raise InputError(folder, f"has no {name}", mend)
        elif folder.exists() or not HUB_NAME.fullmatch(weights):
            raise missing_weights(weights, _EXAMPLE)
        kind, _, index = device.partition(":")
        try:
            self.model = whisper.WhisperModel(
                weights, kind, int(index or 0), options.precision, local_files_only=folder.is_dir()
            )
        except Exception as error:  # CTranslate2, tokenizers and the hub raise many types
            raise InputError(weights, f"can't be loaded by faster-whisper ({error})", "check the files") from None
        if options.language and options.language not in self.model.supported_languages:
            where = f"annotator {self.name}: language"
            raise InputError(where, f"{options.language!r} is not known to this model", "name another or none")

    def annotate(self, song: Song, out: Path) -> Song:
        """Raises Rejected where the audio can't be read or the model fails on it."""
        if "transcript" in song.extra and not self.options.overwrite:
            return song
        track = self.options.track
        if track == "auto":
            track = "vocals" if "vocals" in song.audio else "mix"
        samples = common.hear(song, track, SAMPLE_RATE)
        language = self.options.language or song.language
        words, heard_language = self.transcribe(samples, language)
        extra = {**song.extra, "transcript": words, "transcript_language": heard_language}
        return replace(song, extra=extra)

    def transcribe(self, samples: np.ndarray, language: str | None = None) -> tuple[list[list], str]:
        """float32 (S,) at 16 kHz -> the words and the language; a language that Whisper lacks is left to its ears.

        Raises Rejected where the model fails.
        """
        if language not in self.model.supported_languages:
            language = None
        try:
            segments, info = self.model.transcribe(
                samples,
                language=language,
                beam_size=self.options.beam,
                temperature=0.0,
                word_timestamps=True,
                condition_on_previous_text=False,
                vad_filter=False,
            )
            return timed_words(segments, len(samples) / SAMPLE_RATE), info.language
        except (RuntimeError, ValueError) as error:  # one song that a network can't take must not stop a run of a week
            raise Rejected("transcription_failed", str(error)) from None


def timed_words(segments: Iterable[Any], duration_s: float) -> list[list]:
    """``[start, end, word]`` of all words of faster-whisper's segments, in order of time and within the audio."""
    words = []
    for segment in segments:
        for word in segment.words or ():
            start, end = (min(max(float(time), 0.0), duration_s) for time in (word.start, word.end))
            if word.word.strip() and math.isfinite(start) and math.isfinite(end):
                words.append([round(start, 2), round(max(start, end), 2), word.word])
    return sorted(words, key=lambda word: word[0])

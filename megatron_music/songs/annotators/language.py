"""The language of the lyrics, by lingua's n-gram models."""

from dataclasses import replace
from pathlib import Path

from pydantic import Field, NonNegativeInt

from megatron_music.errors import InputError
from megatron_music.songs.annotators import common
from megatron_music.songs.lyrics import lyrics_text
from megatron_music.songs.song import Song

LETTERS_OF_A_SIGN = 4
"""A Chinese, Japanese or Korean sign tells about as much of its language as so many letters of an alphabet."""
_SIGNS = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\uac00", "\ud7a3"), ("\uf900", "\ufaff"))


class Language:
    """Sets ``Song.language`` to an ISO 639-1 code and ``language_confidence`` to lingua's confidence, from 0 to 1.

    The language stays empty where there is no text, where the text has fewer than ``letters`` letters (a sign of
    Chinese, Japanese or Korean counts as 4), and where the confidence is below ``confidence``; the last two leave the
    confidence behind, 0 for a short text. A song in two languages gets the one that has more of the text.
    """

    name = "language"

    class Options(common.Options):
        """Options of ``language``.

        Attributes:
            languages: ISO 639-1 codes to choose from, separated by commas; all 75 of lingua's where empty. The fewer,
                the surer, and the less memory (all: about 1 GB).
            letters: fewest letters of a text.
            confidence: least confidence.
        """

        languages: str = ""
        letters: NonNegativeInt = 24
        confidence: float = Field(0.5, ge=0, le=1)

    def __init__(self, options: "Language.Options", device: str):
        self.options = options
        lingua = common.import_package(self.name, "lingua", "lingua-language-detector")
        builder = lingua.LanguageDetectorBuilder
        codes = [code.strip().lower() for code in options.languages.split(",") if code.strip()]
        if not codes:
            self._detector = builder.from_all_languages().build()
            return
        known = {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}
        for code in codes:
            if code not in known:
                mend = f"choose from {', '.join(sorted(known))}"
                raise InputError(f"--annotator-option {self.name}.languages", f"{code!r} is not known", mend)
        if len(set(codes)) < 2:
            raise InputError(f"--annotator-option {self.name}.languages", "names one language only", "name two or more")
        self._detector = builder.from_languages(*(known[code] for code in codes)).build()

    def annotate(self, song: Song, out: Path) -> Song:
        if song.language and not self.options.overwrite:
            return song
        text = lyrics_text(song)
        if not text:
            return song
        code, confidence = self.detect(text)
        return replace(song, language=code, extra={**song.extra, "language_confidence": confidence})

    def detect(self, text: str) -> tuple[str | None, float]:
        """ISO 639-1 code (None where it stays open) and confidence of a text."""
        if count_letters(text) < self.options.letters:
            return None, 0.0
        likeliest = self._detector.compute_language_confidence_values(text)[0]
        confidence = round(likeliest.value, 3)
        if confidence < self.options.confidence:
            return None, confidence
        return likeliest.language.iso_code_639_1.name.lower(), confidence


def count_letters(text: str) -> int:
    """Letters of a text, each sign of Chinese, Japanese or Korean as ``LETTERS_OF_A_SIGN``."""
    letters = [letter for letter in text if letter.isalpha()]
    signs = sum(any(first <= letter <= last for first, last in _SIGNS) for letter in letters)
    return len(letters) + signs * (LETTERS_OF_A_SIGN - 1)

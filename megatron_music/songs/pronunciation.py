"""From letters to the sounds that are sung: rules and exceptions by language, syllable by syllable.

Each ``languages/CODE.yaml`` holds ``words`` (the exceptions, a word to its sounds) and ``rules`` (a regular expression
to sounds). A word that is not among the exceptions is read from left to right: the first rule that matches at a letter
is spoken, and reading goes on behind its match (look-around lets a rule see its neighbours). Sounds are the names in
``phones.py``.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_yaml
from megatron_music.songs.phones import PHONES, is_vowel

FOLDER = Path(__file__).parent / "languages"
ONSET_FIRST, ONSET_SECOND = set("p b t d k g f v th sh s".split()), set("l r R w y".split())
ONSET_AFTER_S = set("p t k m n l w".split())


@dataclass(frozen=True)
class Language:
    """Rules and exceptions of one language; sounds are tuples of phone names."""

    code: str
    words: dict[str, tuple[str, ...]]
    rules: tuple[tuple[re.Pattern, tuple[str, ...]], ...]

    def sounds(self, word: str) -> tuple[str, ...]:
        """The sounds of a lower-case word; letters that no rule knows are silent."""
        if word in self.words:
            return self.words[word]
        sounds: list[str] = []
        position = 0
        while position < len(word):
            for pattern, phones in self.rules:
                match = pattern.match(word, position)
                if match and match.end() > position:
                    sounds += phones
                    position = match.end()
                    break
            else:
                position += 1
        return tuple(sounds)


def load_language(code: str, where: str = "language") -> Language:
    """The language of that code (``en``, ``fr``, ``de``, ``zh``); raises InputError, naming ``where``, for others."""
    path = FOLDER / f"{code}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise InputError(where, f"language {code!r} has no pronunciation rules", f"use one of {known}, or add {path}")
    return _read_language(path)


@cache
def _read_language(path: Path) -> Language:
    content = read_yaml(path)
    words = {word: _phones(path, word, sounds) for word, sounds in (content.get("words") or {}).items()}
    rules = [(re.compile(rule), _phones(path, rule, sounds)) for rule, sounds in (content.get("rules") or {}).items()]
    return Language(path.stem, words, tuple(rules))


def _phones(path: Path, entry: str, sounds: str) -> tuple[str, ...]:
    phones = tuple(str(sounds or "").split())
    for phone in phones:
        if phone not in PHONES:
            raise InputError(f"{path}: {entry}", f"sound {phone!r} is not known", f"use one of {' '.join(PHONES)}")
    return phones


def letters(word: str) -> str:
    """A word as the rules read it: lower case, one form of accents, no punctuation around it, no syllable marks."""
    word = unicodedata.normalize("NFC", word.lower()).replace("\u2019", "'").replace("\u2011", "")
    return re.sub(r"[^\w'-]", "", word).strip("-")


def pronounce(word: str, language: Language) -> list[tuple[str, ...]]:
    """Sounds of a word written with a hyphen between its sung syllables (``Su-san-na``), syllable by syllable.

    The word is read as a whole and its sounds are divided so that each syllable has one vowel. Where the writer sings
    more or fewer syllables than the word has vowels, a final schwa gives way (French ``chan-delle``), and otherwise
    every written syllable is read by itself; a syllable without a vowel gets a schwa.
    """
    written = [part for part in letters(word).split("-") if part] or [""]
    sounds = list(language.sounds("".join(written)))
    vowels = sum(is_vowel(phone) for phone in sounds)
    if vowels == len(written) + 1 and sounds[-1] == "ax":
        sounds, vowels = sounds[:-1], vowels - 1
    if vowels == len(written):
        return _divided(sounds)
    parts = [language.sounds(part) for part in written]
    return [part if any(map(is_vowel, part)) else ("ax", *part) for part in parts]


def _divided(sounds: list[str]) -> list[tuple[str, ...]]:
    """Sounds cut between vowels: one consonant, or two that can begin a syllable, go with the later vowel."""
    places = [index for index, phone in enumerate(sounds) if is_vowel(phone)]
    cuts = [0]
    for before, after in zip(places, places[1:], strict=False):
        cut = max(before + 1, after - 1)
        if cut - 1 > before and _begins_syllable(sounds[cut - 1], sounds[cut]):
            cut -= 1
        cuts.append(cut)
    return [tuple(sounds[first:last]) for first, last in zip(cuts, [*cuts[1:], len(sounds)], strict=True)]


def _begins_syllable(first: str, second: str) -> bool:
    return (first in ONSET_FIRST and second in ONSET_SECOND) or (first == "s" and second in ONSET_AFTER_S)

import pytest

from megatron_music.errors import InputError
from megatron_music.songs.abc import read_abc
from megatron_music.songs.phones import is_vowel
from megatron_music.songs.pronunciation import letters, load_language, pronounce


@pytest.mark.parametrize(
    ("language", "word", "syllables"),
    [
        ("en", "A-maz-ing", "ax | m ey | z ih ng"),  # by rules
        ("en", "Su-san-na,", "s uw | z ae | n ax"),  # an exception
        ("en", "spring", "s p r ih ng"),
        ("en", "what-'ll", "w ah | t ax l"),
        ("en", "one\u2011horse", "w ah n h ao r s"),
        ("fr", "lu-ne", "l ue | n ax"),
        ("fr", "chan-delle", "sh ahn | d eh l"),
        ("fr", "ré-pon-dit:", "R e | p ohn | d iy"),
        ("de", "schö-ner", "sh oe | n er"),
        ("de", "Blät-ter!", "b l eh | t er"),
        ("de", "Häns-chen", "h eh n s | cx ax n"),
        ("zh", "茉-莉-花。", "m w ao | l iy | h w a"),
    ],
)
def test_known_words(language, word, syllables):
    found = pronounce(word, load_language(language))
    assert " | ".join(" ".join(syllable) for syllable in found) == syllables


def test_the_writers_division_decides_how_many_syllables():
    english = load_language("en")
    assert len(pronounce("fi-re", english)) == 2
    assert pronounce("brr", english) == [("ax", "b", "r")]
    assert [len(pronounce(word, english)) for word in ("wand-'ring", "o-ver-ture", "blackbird-s")] == [2, 3, 2]


def test_letters_drop_case_and_punctuation():
    assert letters("“Lou’-si-an-a!”") == "lou'-si-an-a"
    assert letters("Fre\u0300-re") == "frè-re"


def test_every_syllable_of_the_songbook_has_one_vowel(repository):
    for path in sorted((repository / "examples" / "songbook").glob("*.abc")):
        song = read_abc(path)
        language = load_language(song.fields["language"])
        for section in song.sections:
            for syllable in (one for line in section.lines for one in line.syllables):
                found = pronounce(syllable.word, language)
                assert len(found) == syllable.count, (path.stem, syllable.word)
                assert sum(map(is_vowel, found[syllable.index])) == 1, (path.stem, syllable.word)


def test_an_unknown_language_is_refused():
    with pytest.raises(
        InputError, match="language: language 'tlh' has no pronunciation rules; use one of de, en, fr, zh"
    ):
        load_language("tlh")

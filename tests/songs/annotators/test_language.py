import pytest

from megatron_music.errors import InputError
from megatron_music.songs.annotators import load_annotator
from megatron_music.songs.annotators.language import count_letters
from megatron_music.songs.song import Segment, Song

SENTENCES = {
    "en": "Staring at the sunset, colors paint the sky\nThoughts of you keep swirling, and I can't deny",
    "zh": "好一朵美丽的茉莉花\n芬芳美丽满枝桠\n又香又白人人夸",
    "ja": "うさぎ追いしかの山\n小鮒釣りしかの川\n夢は今もめぐりて",
    "ko": "나의 살던 고향은 꽃피는 산골\n복숭아꽃 살구꽃 아기 진달래",
    "de": "Stille Nacht, heilige Nacht\nAlles schläft, einsam wacht",
    "fr": "Au clair de la lune, mon ami Pierrot\nPrête-moi ta plume pour écrire un mot",
    "es": "De la Sierra Morena, cielito lindo, vienen bajando\nun par de ojitos negros, cielito lindo, de contrabando",
}


@pytest.fixture(scope="module")
def annotator():
    """One that chooses among fifteen languages; reading the models of all 75 takes longer than all of these tests."""
    return load_annotator("language", {"languages": "en,zh,ja,ko,de,fr,es,it,pt,nl,af,ca,sv,pl,tr"})


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_of_real_lyrics(annotator, tmp_path, language):
    song = Song("a", segments=[Segment(f"[verse]\n{SENTENCES[language]}\n\n", 0, 100)])
    found = annotator.annotate(song, tmp_path)
    assert found.language == language
    assert 0.5 <= found.extra["language_confidence"] <= 1.0


def test_lyrics_without_times_and_speech_are_read_too(annotator, tmp_path):
    assert annotator.annotate(Song("a", extra={"lyrics": SENTENCES["fr"]}), tmp_path).language == "fr"
    assert annotator.annotate(Song("a", text=SENTENCES["de"]), tmp_path).language == "de"


def test_short_or_unsure_texts_leave_the_language_open(annotator, tmp_path):
    assert annotator.detect("La la la") == (None, 0.0)
    short = annotator.annotate(Song("a", extra={"lyrics": "La la la"}), tmp_path)
    assert (short.language, short.extra["language_confidence"]) == (None, 0.0)
    assert annotator.annotate(Song("a"), tmp_path) == Song("a")
    sure = load_annotator("language", {"confidence": "1", "languages": "de,nl,af"})
    language, confidence = sure.detect("La la la la la la la la la la la la la la")
    assert language is None and 0 < confidence < 1


def test_a_language_that_is_known_stays(annotator, tmp_path):
    song = Song("a", language="en", text=SENTENCES["de"])
    assert annotator.annotate(song, tmp_path) == song
    again = load_annotator("language", {"overwrite": "true", "languages": "en, de"})
    assert again.annotate(song, tmp_path).language == "de"


def test_signs_count_as_several_letters():
    assert count_letters("La la, 12!") == 4
    assert count_letters("茉莉花") == count_letters("うさぎ") == count_letters("나의살") == 12


def test_bad_languages_are_told_in_one_line():
    with pytest.raises(InputError, match="languages: 'xx' is not known; choose from af, "):
        load_annotator("language", {"languages": "en,xx"})
    with pytest.raises(InputError, match="names one language only"):
        load_annotator("language", {"languages": "en"})

"""Hints: tags outside a list, and scripts that the models have not seen."""

import json

import pytest

from megatron_music.errors import InputError
from megatron_music.generation.hints import language_hints, lyrics_hints, read_known_tags, tag_hints, unknown_tags
from megatron_music.songs.lyrics import parse_lyrics
from megatron_music.vocabulary.text import TextTokenizer, train_text_tokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

KNOWN = ["pop", "airy vocal", "Female", "bright vocal"]


def test_known_tags_are_taken_longest_first_and_whatever_their_case():
    assert unknown_tags("Pop female airy vocal bright vocal", KNOWN) == []
    assert unknown_tags("pop, airy vocal, dark vocal", KNOWN) == ["dark vocal"]
    assert unknown_tags("airy pop vocal", KNOWN) == ["airy", "vocal"]
    assert tag_hints("popp", KNOWN) == ["tags: 'popp' is not among the known ones; did you mean 'pop'?"]
    assert tag_hints("zzz", KNOWN) == ["tags: 'zzz' is not among the known ones"]


def test_the_published_prompt_is_known_to_the_published_list(yue_data):
    known = read_known_tags(yue_data / "top_200_tags.json")
    assert len(known) == 818
    assert tag_hints((yue_data / "genre.txt").read_text(), known) == []


def test_tag_files_are_lines_or_lists_by_kind(tmp_path):
    (tmp_path / "tags.txt").write_text("pop\n\n airy vocal \n")
    assert read_known_tags(tmp_path / "tags.txt") == ["pop", "airy vocal"]
    (tmp_path / "tags.json").write_text(json.dumps({"genre": ["pop"], "timbre": ["airy vocal"]}))
    assert read_known_tags(tmp_path / "tags.json") == ["pop", "airy vocal"]
    for content, message in (("{", "is not JSON"), ("{}", "holds no tags"), ("3", "holds no tags")):
        (tmp_path / "tags.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_known_tags(tmp_path / "tags.json")


def test_scripts_that_are_spelled_in_bytes_are_named(tmp_path, tiny_vocabulary, text_tokenizer_file, repository):
    vocabulary = Vocabulary.load(repository / "tests" / "data" / "tiny_vocabulary.yaml")
    english = TextTokenizer(text_tokenizer_file, vocabulary)
    hint = "lyrics: the text tokenizer spells Cyrillic letters in bytes; the models have hardly seen this language"
    assert language_hints(["[verse]\nпесня моя\n\n"], english) == [hint]
    assert language_hints(["[verse]\nla la la песня la la la la la la la la\n\n"], english) == []
    for known in ("[песня]\nla la\n\n", "[verse]\n春眠不觉晓\n\n", "[verse]\nさくら 노래\n\n", "[intro]\n\n"):
        assert language_hints([known], english) == []
    train_text_tokenizer(["песня моя"] * 3, tmp_path / "russian.model", 300)
    assert language_hints(["[verse]\nпесня моя\n\n"], TextTokenizer(tmp_path / "russian.model", vocabulary)) == []


def test_what_is_not_sung_is_told_in_a_line_for_each_rule():
    assert lyrics_hints(parse_lyrics("[verse]\nla"), "a.txt") == []
    text = "[verse]\nla (x2)\nLyrics by Anna\nle (x2)\n" + 10 * "lu (x3)\n"
    assert lyrics_hints(parse_lyrics(text), "a.txt") == [
        "a.txt: line 2: '(x2)' is left out; write what is sung again once more; "
        "the same on lines 4, 5, 6, 7, 8, 9, 10, 11, ...",
        "a.txt: line 3: 'Lyrics by Anna' is a credit or a notice, and left out",
    ]
    assert lyrics_hints(parse_lyrics("la\n[verse]\nle [2]\nlu [2]"), "lyrics") == [
        "lyrics: line 3: '[2]' has digits in brackets, or reads like a time, and is kept; the same on line 4",
        "lyrics: line 1: is sung without a label; models follow lines below a [verse] better",
    ]

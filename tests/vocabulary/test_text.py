import random

import pytest

from megatron_music.errors import InputError
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.text import TextTokenizer, train_text_tokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

SONGS = [
    "[verse]\nThe cuckoo is a pretty bird\nShe warbles as she flies\n\n",
    "[chorus]\nRow, row, row your boat\nGently down the stream\n\n",
    "folk, female, gentle, guitar",
]


@pytest.fixture(scope="module")
def quickstart(repository) -> Vocabulary:
    return Vocabulary.load(repository / "tokenizers" / "quickstart.yaml")


@pytest.fixture(scope="module")
def small(tmp_path_factory, quickstart) -> TextTokenizer:
    path = tmp_path_factory.mktemp("text") / "tokenizer.model"
    train_text_tokenizer(SONGS, path, quickstart.text_size)
    return TextTokenizer(path, quickstart)


@pytest.fixture(scope="module")
def released(repository, yue_data) -> TextTokenizer:
    return TextTokenizer(yue_data / "tokenizer.model", Vocabulary.load(repository / "tokenizers" / "yue.yaml"))


def test_released_ids_of_plain_text(released):
    assert released.encode("[verse]\n\nla\n") == [518, 3901, 29962, 13, 13, 433, 13]
    assert released.encode("[start_of_segment]") == [518, 2962, 29918, 974, 29918, 28192, 29962]
    assert released.encode("") == []


def test_released_ids_of_special_tokens_in_a_text(released):
    # each stretch between special tokens is encoded on its own, so that b gets a word start of its own
    assert released.encode("a<EOD>b") == [*released.encode("a"), 32000, *released.encode("b")]
    assert released.encode("<s>a</s>") == [1, *released.encode("a"), 2]
    assert released.encode("<stage_1><stage_2>") == [32013, 32017]
    assert 32016 not in released.encode("<xcodec>")
    assert max(released.encode("<xcodec> <dac16k/0/0> <semantic>")) < 32000


def test_released_text_comes_back(released):
    for text in ("[verse]\nla  la\n\n", "a<EOD>b\n", "Straße 给 \u2603"):
        assert released.decode(released.encode(text)) == text
    assert released.decode([433, 32001, 32016, 45334 + 1024 + 3]) == "la<SOA><xcodec><xcodec/1/3>"


def test_pieces_in_words(released):
    assert released.vocabulary.describe(433, released) == "text 'la'"
    assert released.vocabulary.describe(263, released) == "text ' a'"
    assert released.vocabulary.describe(13, released) == "text '\\n'"


def test_any_text_comes_back_from_a_small_model(small):
    rng = random.Random(0)
    parts = [
        "a",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "[verse]\n",
        "\n\n",
        "cuckoo",
        "é",
        "给",
        "\U0001f600",
        "\u200b",
        "\x00",
    ]
    parts += ["\x00", "12", "<", ">", "<EOA>", "<s>", "</s>", "<unk>", "<0x0A>"]
    for _ in range(500):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(12)))
        text += chr(rng.choice([rng.randrange(0x20, 0x2580), rng.randrange(0xE000, 0x10FFFF)]))
        assert small.decode(small.encode(text)) == text


def test_a_small_model_stays_within_the_text_ids(small, quickstart):
    ids = small.encode("[verse]\nthe stream 给 <EOD>\n\n")
    assert [id for id in ids if id >= quickstart.text_size] == [quickstart.special("<EOD>")]
    assert small.vocabulary.text_kinds(ids).tolist().count(Kind.SPECIAL) == 1
    assert small.decode([quickstart.text_size - 1]) == ""


def test_newline_is_one_piece(small):
    newline = small.encode("\n")
    assert len(newline) == 1
    assert small.encode("la\n\nla").count(newline[0]) == 2
    assert small.piece(newline[0]) == "\n"


def test_a_model_is_told_with_what_it_spells_in_bytes(tmp_path):
    told = train_text_tokenizer(SONGS, tmp_path / "model", 400)
    lines = sum(bool(line.strip()) for text in SONGS for line in text.split("\n"))
    assert told == f"{tmp_path / 'model'}: 400 pieces of at most 400, learned from {lines} lines"
    told = train_text_tokenizer(["aabbccddeeff", "gx"], tmp_path / "model", 277)
    assert told.endswith("pieces of at most 277, learned from 2 lines")
    told = train_text_tokenizer(["aabbccddeeffhh", "gxy"], tmp_path / "model", 277)
    assert told.endswith("; spelled in bytes, 2 rare characters: xy")


def test_the_same_text_gives_the_same_model(tmp_path):
    for name in ("first", "second"):
        train_text_tokenizer(iter(SONGS), tmp_path / name, 400)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize(
    "texts", [["a"], ["la la la\n"], ["".join(map(chr, range(0x4E00, 0x4E00 + 3000)))], ["\x00", "b"]]
)
def test_little_or_odd_text_still_gives_a_model(tmp_path, quickstart, texts):
    train_text_tokenizer(texts, tmp_path / "tokenizer.model", quickstart.text_size)
    tokenizer = TextTokenizer(tmp_path / "tokenizer.model", quickstart)
    text = texts[0] + "[verse]\nAny other words, 给你\n\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(tokenizer.encode(text)) < quickstart.text_size


def test_no_text_and_too_few_ids_are_told(tmp_path):
    with pytest.raises(InputError, match="no text"):
        train_text_tokenizer(["", "\n\n"], tmp_path / "tokenizer.model", 1024)
    with pytest.raises(InputError, match="too few"):
        train_text_tokenizer(SONGS, tmp_path / "tokenizer.model", 100)
    assert not list(tmp_path.iterdir())


def test_wrong_models_are_told(tmp_path, quickstart):
    with pytest.raises(InputError, match="no such file"):
        TextTokenizer(tmp_path / "none.model", quickstart)
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        TextTokenizer(tmp_path / "junk.model", quickstart)


def test_the_model_of_another_vocabulary_is_told(yue_data, quickstart):
    with pytest.raises(InputError, match="has 83734 pieces, vocabulary quickstart has 512 text ids"):
        TextTokenizer(yue_data / "tokenizer.model", quickstart)

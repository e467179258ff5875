import re

import numpy as np
import pytest
import yaml

from megatron_music.errors import InputError
from megatron_music.vocabulary.kinds import (
    AUDIO_GROUPS,
    AUDIO_KINDS,
    COARSE_GROUPS,
    COARSE_KINDS,
    CODEBOOK_KINDS,
    LOSS_GROUPS,
    Kind,
)
from megatron_music.vocabulary.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def yue(repository) -> Vocabulary:
    return Vocabulary.load(repository / "tokenizers" / "yue.yaml")


def test_the_released_layout(yue):
    assert (yue.text_size, yue.size, yue.padded_size) == (32000, 83734, 83968)
    assert yue.padded_size % 128 == 0
    assert len(yue.specials) == 22
    assert [yue.special(token) for token in ("<EOD>", "<SOA>", "<EOA>", "<stage_1>", "<xcodec>", "<stage_2>")] == [
        32000, 32001, 32002, 32013, 32016, 32017
    ]  # fmt: skip
    assert yue.special("<semanticodec>") == 32021
    ranges = {codec.name: (codec.first, codec.end) for codec in yue.codecs.values()}
    assert ranges == {
        "dac16k": (32022, 36118),
        "dac44k": (36118, 45334),
        "xcodec": (45334, 57622),
        "mert": (57622, 58646),
        "hubert": (58646, 59158),
        "semantic/s": (59158, 75542),
        "semantic/a": (75542, 83734),
    }
    assert yue.codec() is yue.codec("xcodec")


def test_every_piece_of_the_released_tokenizer_has_its_id(yue, yue_data):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(yue_data / "tokenizer.model"))
    assert model.get_piece_size() == yue.size
    assert {token: model.piece_to_id(token) for token in yue.specials} == yue.specials
    for codec in yue.codecs.values():
        for id in (codec.first, codec.end - 1):
            codebook, code = divmod(id - codec.first, codec.codebook_size)
            # pieces of codecs with one codebook leave its number out
            codebook_part = f"{codebook}/" if codec.codebooks > 1 else ""
            assert model.id_to_piece(id) == f"<{codec.name}/{codebook_part}{code}>"


@pytest.mark.parametrize("name", ["yue", "quickstart"])
def test_a_saved_vocabulary_reads_back_equal(repository, tmp_path, name):
    vocabulary = Vocabulary.load(repository / "tokenizers" / f"{name}.yaml")
    vocabulary.save(tmp_path / "vocabulary.yaml")
    assert Vocabulary.load(tmp_path / "vocabulary.yaml") == vocabulary


def test_ids_and_codes_are_inverse(yue):
    codec = yue.codec()
    codes_KT = np.array([[0, 1023], [5, 6], [7, 8]], dtype=np.int16)
    ids = codec.ids(codes_KT)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[45334, 46357], [46363, 46364], [47389, 47390]]
    assert codec.ids(codes_KT[2:], first_codebook=2).tolist() == [[47389, 47390]]
    for codebook in range(3):
        codes = codec.codes(ids[codebook], codebook)
        assert codes.dtype == np.int16
        assert codes.tolist() == codes_KT[codebook].tolist()
    assert codec.codebook_ids(7) == range(52502, 53526)


@pytest.mark.parametrize("codes", [[[1024]], [[-1]], [[0]] * 13])
def test_codes_out_of_range_are_refused(yue, codes):
    with pytest.raises(ValueError, match="xcodec"):
        yue.codec().ids(np.array(codes))


def test_ids_of_another_codebook_are_refused(yue):
    with pytest.raises(ValueError, match="codebook 0"):
        yue.codec().codes(np.array([45334, 46358]))
    with pytest.raises(ValueError, match="codebooks 0 to 11"):
        yue.codec().codebook_ids(12)


def test_ids_in_words(yue, repository):
    assert yue.describe(45334 + 17) == "<xcodec> codebook 0 code 17"
    assert yue.describe(46358) == "<xcodec> codebook 1 code 0"
    assert yue.describe(59158) == "<semanticodec><semantic> codebook 0 code 0"
    assert yue.describe(32002) == "<EOA>"
    assert yue.describe(5) == "text 5"
    assert yue.describe(83734) == "padding id 83734"
    with pytest.raises(ValueError, match="outside"):
        yue.describe(83968)


def test_markers(yue):
    assert yue.marker_ids(yue.codec()) == [32016]
    assert yue.marker_ids(yue.codec("semantic/a")) == [32021, 32012]


def test_unknown_names_name_the_mend(yue):
    with pytest.raises(InputError, match="did you mean <EOA>"):
        yue.special("<EOAA>")
    with pytest.raises(InputError, match="choose from dac16k"):
        yue.codec("encodec")


def _changed(repository, tmp_path, change) -> str:
    content = yaml.safe_load((repository / "tests" / "data" / "small_vocabulary.yaml").read_text())
    change(content)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(surprise=1), "surprise: unknown field"),
        (lambda c: c.pop("padded_size"), "padded_size: missing field"),
        (lambda c: c.update(padded_size=3000), "padded_size: 3000 is below size 3095"),
        (lambda c: c.update(size=3094), "size: 3094 is below the last range's end 3095"),
        (lambda c: c["text"].update(size=1025), "specials: ids 1024 to 1046 overlap text"),
        (lambda c: c["codecs"][0].update(first=1046), "codecs embedded: ids 1046 to 3093 overlap specials"),
        (lambda c: c["codecs"][0].update(marker="<nothing>"), "marker '<nothing>' is not in specials.tokens"),
        (lambda c: c["codecs"][0].update(depth=3), "codecs[0].depth: unknown field"),
        (lambda c: c["codecs"].append(c["codecs"][0]), "two codecs have the same name"),
        (lambda c: c["specials"]["tokens"].append("<EOD>"), "<EOD> stands there twice"),
        (lambda c: c["specials"]["tokens"].append("EOS"), "'EOS' is not a special token"),
        (lambda c: c["specials"]["tokens"].remove("<SOA>"), "<SOA> is missing"),
        (lambda c: c.update(default_codec="xcodec"), "default_codec: xcodec is not one of the codecs"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_field(repository, tmp_path, change, message):
    path = _changed(repository, tmp_path, change)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Vocabulary.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_gaps_are_allowed(repository, tmp_path):
    def leave_a_gap(content):
        content["codecs"][0]["first"] = 1060
        content["size"] = 3108

    vocabulary = Vocabulary.load(_changed(repository, tmp_path, leave_a_gap))
    assert vocabulary.describe(1050) == "unused id 1050"


def test_every_kind_is_in_one_loss_group():
    grouped = [kind for group in LOSS_GROUPS.values() for kind in group]
    assert sorted(grouped) == sorted(Kind)
    assert CODEBOOK_KINDS[0] == Kind.CODEBOOK_1 == 6
    assert CODEBOOK_KINDS[-1] == Kind.CODEBOOK_7 == 12
    assert set(AUDIO_KINDS) == set(Kind) - {Kind.TEXT, Kind.SPECIAL}


def test_groups_of_audio_hold_the_kinds_of_audio():
    assert tuple(kind for group in COARSE_GROUPS for kind in LOSS_GROUPS[group]) == COARSE_KINDS
    assert tuple(kind for group in AUDIO_GROUPS for kind in LOSS_GROUPS[group]) == AUDIO_KINDS
    others = [kind for group in LOSS_GROUPS if group not in AUDIO_GROUPS for kind in LOSS_GROUPS[group]]
    assert sorted([*AUDIO_KINDS, *others]) == list(Kind)

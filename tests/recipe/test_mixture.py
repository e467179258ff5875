"""Mixtures: shares from ratios, exactly, and what is told where the ratios do not settle them."""

from fractions import Fraction

import pytest
import yaml
from pydantic import ValidationError

from megatron_music.errors import InputError
from megatron_music.recipe.mixture import Mixture, RatioRule, members, solve
from megatron_music.recipe.recipe import Recipe

GROUPS = {
    "conditional": ["songs", "speech"],
    "unconditional": ["mix", "dual"],
    "music": ["songs", "mix", "dual"],
    "old": ["*_en", "*_zh"],
    "new": ["*_ja"],
}
SOURCES = ["songs_en", "songs_ja", "speech_en", "speech_ja", "mix_en", "mix_ja", "dual_en", "dual_ja"]
TWO_KINDS = ["conditional:unconditional = 3:1", "music:speech = 10:1"]


def solved(sources, ratios, **fields):
    mixture = Mixture.model_validate({"sources": sources, "ratios": ratios, **fields})
    return {"+".join(part): share for part, share in solve(mixture, GROUPS).items()}


def test_overlapping_groups_have_the_published_shares():
    shares = solved(["songs", "speech", "mix", "dual"], [*TWO_KINDS, "mix:dual = 1:1"])
    assert shares == {
        "songs": Fraction(29, 44),
        "speech": Fraction(1, 11),
        "mix": Fraction(1, 8),
        "dual": Fraction(1, 8),
    }


def test_a_ratio_in_each_of_some_holds_in_every_one_of_them():
    shares = solved(SOURCES, [*TWO_KINDS, "mix:dual = 1:1", "old:new = 2:1 in each of songs, speech, mix, dual"])
    assert sum(shares.values()) == 1
    for task, share in {"songs": Fraction(29, 44), "speech": Fraction(1, 11), "mix": Fraction(1, 8)}.items():
        assert (shares[f"{task}_en"], shares[f"{task}_ja"]) == (share * 2 / 3, share / 3)


def test_ratios_of_several_names_and_of_broken_numbers_are_exact():
    shares = solved(["a", "b", "c"], ["a:b:c = 0.1 : 1/3 : 2"])
    total = Fraction(1, 10) + Fraction(1, 3) + 2
    assert shares == {"a": Fraction(1, 10) / total, "b": Fraction(1, 3) / total, "c": 2 / total}
    assert solved(["a"], []) == {"a": 1}


def test_plain_shares_are_scaled_to_one():
    assert solve(Mixture.model_validate({"a": 3, "b": "1/2"}), {}) == {("a",): Fraction(6, 7), ("b",): Fraction(1, 7)}


def test_names_stand_for_groups_sources_patterns_and_beginnings():
    sources = ["mix", "mix_en", "mixed", "songs_en", "songs_zh"]
    assert members("mix", sources, {}) == ("mix",)
    assert members("songs", sources, {}) == ("songs_en", "songs_zh")
    assert members("*_en", sources, {}) == ("mix_en", "songs_en")
    assert members("old", sources, GROUPS) == ("mix_en", "songs_en", "songs_zh")
    assert members("harp", sources, GROUPS) == ()


def test_what_no_ratio_tells_apart_stays_together_where_rest_says_so():
    shares = solved(SOURCES, TWO_KINDS, rest="by_size")
    assert shares == {
        "songs_en+songs_ja": Fraction(29, 44),
        "speech_en+speech_ja": Fraction(1, 11),
        "mix_en+mix_ja+dual_en+dual_ja": Fraction(1, 4),
    }
    assert solved(["a", "b"], [], rest="by_size") == {"a+b": 1}


@pytest.mark.parametrize(
    ("sources", "ratios", "rest", "message"),
    [
        (["songs", "speech", "mix", "dual"], TWO_KINDS, None,
         "leave open the shares of mix, dual; add a ratio such as mix:dual = 1:1, or `rest: by_size` to split"),
        (["a", "b", "c"], ["a:b = 1:1"], None, "leave open the shares of a, b, c; add a ratio such as a:c = 1:1"),
        (["a", "b", "c"], ["a:b = 1:1"], "by_size", "leave open the shares of a, b, c; add a ratio such as a:c = 1:1"),
        (["a", "b"], ["a:b = 1:1", "b:a = 1:2"], None, "the ratio b:a = 1:2 contradicts those before it"),
        (["songs", "speech", "mix", "dual"],
         ["conditional:unconditional = 1:3", "music:speech = 1:10", "mix:dual = 1:1"], None,
         "give songs a share of -29/44: they can't all hold; change one of those that name it: "
         "conditional:unconditional = 1:3; music:speech = 1:10"),
        (["a", "b"], ["a:c = 1:1"], None, "the ratio a:c = 1:1: c is no source of this phase; mend the name"),
        (SOURCES[:3], ["old:new = 2:1 in each of songs, speech"], None, "new in speech is no source of this phase"),
    ],
)  # fmt: skip
def test_ratios_that_settle_nothing_are_told(sources, ratios, rest, message):
    with pytest.raises(ValueError) as error:
        solved(sources, ratios, rest=rest)
    assert message in str(error.value)
    # By size is offered where it helps alone.
    assert ("by_size" in str(error.value)) == ("by_size" in message)


def test_the_suggested_ratio_settles_the_shares():
    assert sum(solved(["songs", "speech", "mix", "dual"], [*TWO_KINDS, "mix:dual = 1:1"]).values()) == 1
    assert sum(solved(["a", "b", "c"], ["a:b = 1:1", "a:c = 1:1"]).values()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("music = 1:3", "has 1 names and 2 numbers"),
        ("a:b = 1", "has 2 names and 1 numbers"),
        ("a:b = 1:0", "'0' must be above 0"),
        ("a:b = 1:x", "'x' is not a number"),
        ("a:b", "'a:b' is not a ratio; write for example"),
        ("a:b = 1:1 in each of ", "is not a ratio: '1 in each of' is not a number"),
        ("a:b = 1:1 in each of x,,y", "lacks a name between its signs"),
        ({"a": 1}, "in quotes where YAML takes it apart"),
    ],
)
def test_a_text_that_is_no_ratio_is_told(text, message):
    with pytest.raises(ValueError) as error:
        RatioRule.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "names no source"),
        ({"ratios": ["a:b = 1:1"]}, "names no source"),
        ({"shares": {"a": 1}, "sources": ["a"]}, "keep one of the two forms"),
        ({"sources": ["a", "b", "a"]}, "names the source a twice"),
    ],
)
def test_a_mixture_of_neither_form_is_told(fields, message):
    with pytest.raises(ValidationError, match=message):
        Mixture.model_validate(fields)


@pytest.fixture
def make_recipe(repository, tmp_path):
    """The 7B's recipe with other fields, read back from its file."""

    def make(mixture, **fields):
        content = yaml.safe_load((repository / "examples" / "yue_7b.yaml").read_text())
        content["phases"] = [content["phases"][0] | {"mixture": mixture}]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**content, "groups": GROUPS, **fields}))
        return Recipe.load(path)

    return make


RATIOS = {"sources": SOURCES, "ratios": TWO_KINDS, "rest": "by_size"}


def test_a_mixture_reads_back_equal_and_as_it_was(make_recipe, tmp_path):
    for mixture in (
        dict.fromkeys(SOURCES, "1/8"),
        RATIOS,
        {"shares": dict.fromkeys(SOURCES, "2"), "unit": "hours"},
    ):
        recipe = make_recipe(mixture)
        recipe.save(tmp_path / "resolved.yaml")
        assert Recipe.load(tmp_path / "resolved.yaml") == recipe
        assert yaml.safe_load((tmp_path / "resolved.yaml").read_text())["phases"][0]["mixture"] == mixture


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixture": {**RATIOS, "rest": None}}, "phase 'warm-up': mixture: the ratios leave open the shares of"),
        ({"mixture": {**RATIOS, "ratio": []}}, "phases[0].mixture.ratio: unknown field; did you mean ratios?"),
        ({"mixture": {**RATIOS, "ratios": ["a"]}}, "phases[0].mixture.ratios[0]: 'a' is not a ratio"),
        ({"mixture": RATIOS, "most_epochs": {"harp": 3}}, "most_epochs: harp holds no source of any phase"),
        ({"mixture": RATIOS, "groups": {**GROUPS, "folk": ["folk"]}}, "groups: folk holds no source of any phase"),
        ({"mixture": RATIOS, "groups": {**GROUPS, "mix_en": ["mix"]}}, "groups: mix_en is also a source"),
        ({"mixture": RATIOS, "most_epochs": {"songs": 0}}, "most_epochs.songs: 0 must be above 0"),
    ],
)
def test_a_recipe_with_a_bad_mixture_gets_one_line(make_recipe, tmp_path, fields, message):
    with pytest.raises(InputError) as error:
        make_recipe(**fields)
    assert str(error.value).startswith(str(tmp_path / "recipe.yaml")) and "\n" not in str(error.value)
    assert message in str(error.value)

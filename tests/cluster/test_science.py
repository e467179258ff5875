"""What a plan warns of."""

from fractions import Fraction

import pytest

from megatron_music.cluster.plan import make_plan
from megatron_music.recipe.recipe import Recipe


@pytest.fixture
def lessons(repository):
    """The warnings of an example with overrides, as (where, what, source)."""

    def of(name: str, *overrides: str) -> list[tuple[str, str, str]]:
        recipe = Recipe.load(repository / "examples" / f"{name}.yaml", ["corpus=/nowhere", *overrides])
        return [(lesson.where, lesson.what, lesson.source) for lesson in make_plan(recipe).lessons]

    return of


@pytest.mark.parametrize("name", ["yue_0.5b", "yue_2b", "yue_7b", "yue_stage2"])
def test_the_published_recipes_break_no_lesson(lessons, name):
    assert lessons(name) == []


def test_the_quickstart_has_no_speech(lessons):
    what = "no speech at all: speech is the key to following lyrics"
    assert lessons("quickstart") == [("all phases", what, "deck, lessons")]


@pytest.mark.parametrize(
    ("override", "where", "what", "source"),
    [
        (
            "phases.warm-up.mixture={lyrics_to_song_en_zh: 9, reference_en_zh: 1, speech_en_zh: 1}",
            "warm-up",
            "in-context documents (ICL) before annealing: too early, they give a copy machine",
            "deck, lessons",
        ),
        (
            "phases.warm-up.mixture={lyrics_to_song_en_zh: 4, speech_en_zh: 1}",
            "warm-up",
            "speech is 20.0%, above 1/11: too much gives a rap machine",
            "deck, mixture and lessons",
        ),
        (
            "phases.warm-up.mixture={lyrics_to_song_en_zh: 5, mix_en_zh: 3, dual_track_en_zh: 2}",
            "warm-up",
            "unconditional data is 50.0%, above 1/4: it hurts the lyrics",
            "deck, mixture and lessons",
        ),
        (
            "phases.annealing.mixture={lyrics_to_song_best: 1, reference_best: 1}",
            "annealing",
            "in-context documents are 50.0%: CoT to ICL was 2:1",
            "deck, annealing",
        ),
        (
            "phases.annealing.mixture={lyrics_to_song_best: 20, reference_best: 5, speech_best: 1}",
            "annealing",
            "speech data while the learning rate falls: it was dropped there",
            "paper, annealing",
        ),
        (
            "phases.long-context.mixture={lyrics_to_song_en_zh: 10, speech_en_zh: 1, mix_en_zh: 1}",
            "long-context",
            "single-track unconditional data at the longer context: it was dropped there",
            "paper, third phase",
        ),
        (
            "phases.long-context.learning_rate=1e-4",
            "long-context",
            "the learning rate jumps from 0.0003 to 0.0001 as the context and the batch changes: the phases joined at "
            "one rate",
            "deck, phases",
        ),
    ],
)
def test_a_lesson_that_is_forgotten_is_told_with_its_source(lessons, override, where, what, source):
    found = lessons("yue_7b", override)
    assert (where, what, source) in found
    # A phase that begins at another rate than the one before it ends with is told at both of its ends.
    assert len(found) == (2 if "learning_rate" in override else 1)


def test_unconditional_music_alone_is_told_at_7b_only(lessons):
    mixtures = [
        f"phases.{name}.mixture={{dual_track_en_zh: 1, dual_track_other: 1}}"
        for name in ("warm-up", "constant", "long-context")
    ]
    what = "unconditional music alone before the last phase: it worked at 0.5B and 2B and failed at 7B"
    for name, is_told in (("yue_7b", True), ("yue_2b", False)):
        assert (("all phases", what, "deck, lessons") in lessons(name, *mixtures)) == is_told


def test_sources_that_only_the_corpus_tells_apart_count_together(repository):
    mixture = '{sources: [lyrics_to_song, speech_a, speech_b], ratios: ["lyrics_to_song:speech = 3:1"], rest: by_size}'
    overrides = ["corpus=/nowhere", f"phases.warm-up.mixture={mixture}"]
    plan = make_plan(Recipe.load(repository / "examples" / "yue_7b.yaml", overrides))
    assert plan.shares[0] == {("lyrics_to_song",): Fraction(3, 4), ("speech_a", "speech_b"): Fraction(1, 4)}
    assert [lesson.what for lesson in plan.lessons] == ["speech is 25.0%, above 1/11: too much gives a rap machine"]

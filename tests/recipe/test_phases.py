"""Which step belongs to which phase, and its learning rate."""

import math

import pytest

from megatron_music.recipe.phases import learning_rate_at, phase_spans, step_at
from megatron_music.recipe.recipe import LearningRate, Recipe


@pytest.fixture
def recipe():
    def phase(name, tokens, context_tokens, shape, start, end):
        return {
            "name": name,
            "tokens": tokens,
            "context_tokens": context_tokens,
            "batch_sequences": 2,
            "learning_rate": {"shape": shape, "start": start, "end": end},
            "mixture": {"songs": 1},
        }

    content = {
        "name": "small",
        "vocabulary": "v",
        "corpus": "c",
        "run": "r",
        "network": {
            "hidden_size": 64,
            "layers": 2,
            "attention_heads": 4,
            "key_value_heads": 2,
            "ffn_hidden_size": 128,
            "position_limit": 64,
        },
        "phases": [
            phase("a", 150, 32, "linear", 0, 1),  # three steps of 64: 150 is reached in the third
            phase("b", 100, 32, "constant", 1, 1),  # from 192 until 250 is reached: one step
            phase("c", 250, 64, "cosine", 1, 0.1),  # from 256 until 500 is reached: two steps of 128
        ],
    }
    return Recipe.parse(content, "recipe.yaml")


def test_a_phase_ends_with_the_first_step_that_reaches_its_total(recipe):
    spans = phase_spans(recipe)
    assert [(span.first_step, span.last_step) for span in spans] == [(0, 3), (3, 4), (4, 6)]
    assert [(span.first_token, span.last_token) for span in spans] == [(0, 192), (192, 256), (256, 512)]
    assert [span.first_sequence for span in spans] == [0, 6, 8]


def test_a_step_knows_its_tokens_sequences_and_learning_rate(recipe):
    spans = phase_spans(recipe)
    steps = [step_at(spans, index) for index in range(6)]
    assert [step.tokens_before for step in steps] == [0, 64, 128, 192, 256, 384]
    assert [step.first_sequence for step in steps] == [0, 2, 4, 6, 8, 10]
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (tokens - 250) / 250)) for tokens in (256, 384)]
    assert [step.learning_rate for step in steps] == pytest.approx([0, 64 / 150, 128 / 150, 1, *cosine])
    with pytest.raises(IndexError):
        step_at(spans, 6)


def test_a_phase_that_the_one_before_has_used_up_has_no_step(recipe):
    phases = [recipe.phases[0], recipe.phases[1].model_copy(update={"tokens": 20}), recipe.phases[2]]
    spans = phase_spans(recipe.model_copy(update={"phases": phases}))
    assert [span.steps for span in spans] == [3, 0, 2]


@pytest.mark.parametrize(("progress", "expected"), [(0, 3e-4), (0.5, 1.65e-4), (1, 3e-5), (2, 3e-5), (-1, 3e-4)])
def test_the_cosine_starts_and_ends_where_it_says(progress, expected):
    rate = LearningRate(shape="cosine", start=3e-4, end=3e-5)
    assert learning_rate_at(rate, progress) == pytest.approx(expected)


def test_the_published_warm_up_ends_with_the_step_that_reaches_240_billion_tokens(repository):
    spans = phase_spans(Recipe.load(repository / "examples" / "yue_7b.yaml"))
    step_tokens = 768 * 8192
    assert spans[0].last_step == math.ceil(240e9 / step_tokens)
    last, following = (step_at(spans, spans[0].last_step + offset) for offset in (-1, 0))
    assert last.tokens_before < 240e9 <= following.tokens_before
    assert last.learning_rate == pytest.approx(3e-4 * last.tokens_before / 240e9)
    assert following.learning_rate == 3e-4
    assert spans[-1].last_token - 1.77e12 < step_tokens

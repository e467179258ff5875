"""Which step belongs to which phase, and its learning rate."""

import math

import pytest

from megatron_music.recipe.phase import BatchRamp, LearningRate
from megatron_music.recipe.phases import learning_rate_at, phase_spans, step_at, step_of_sequence
from megatron_music.recipe.recipe import Recipe


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


@pytest.fixture
def ramped(recipe):
    """Phase b with batches of 2, 4, 6 and 8 of 32 tokens: 300 tokens of ramp are 100 for each addition."""
    ramp = BatchRamp(start_sequences=2, add_sequences=2, tokens=300)
    second = recipe.phases[1].model_copy(update={"tokens": 1000, "batch_sequences": 8, "batch_ramp": ramp})
    return recipe.model_copy(update={"phases": [recipe.phases[0], second, recipe.phases[2]]})


def test_a_ramp_adds_to_the_batch_after_equal_parts_of_its_tokens(ramped):
    spans = phase_spans(ramped)
    # The phase is planned from token 150 and begins at 192. A step has the batch of the tokens before it: below 250,
    # 350, 450 and from there on, until 1150 is reached.
    steps = [step_at(spans, index) for index in range(3, spans[1].last_step)]
    assert [step.tokens_before for step in steps] == [192, 256, 384, 576, 832, 1088]
    assert [step.batch_sequences for step in steps] == [2, 4, 6, 8, 8, 8]
    assert [step.first_sequence for step in steps] == [6, 8, 12, 18, 26, 34]
    assert [step.learning_rate for step in steps] == [1] * 6
    assert (spans[1].last_token, spans[1].last_sequence) == (1344, 42)
    following = step_at(spans, spans[1].last_step)
    assert (following.span.phase.name, following.tokens_before, following.first_sequence) == ("c", 1344, 42)
    assert following.tokens == 128 and spans[2].last_step - spans[2].first_step == 1


def test_a_batch_of_a_ramp_that_the_phase_before_has_used_up_is_left_out(ramped):
    short = ramped.phases[1].model_copy(update={"batch_ramp": BatchRamp(start_sequences=2, add_sequences=2, tokens=60)})
    spans = phase_spans(ramped.model_copy(update={"phases": [ramped.phases[0], short, ramped.phases[2]]}))
    # 42 tokens over: the additions after 20 and 40 tokens are done, the one after 60 comes a step later.
    assert [step_at(spans, index).batch_sequences for index in range(3, 6)] == [6, 8, 8]


def test_every_sequence_has_its_step(ramped):
    spans = phase_spans(ramped)
    for index in range(spans[-1].last_step):
        step = step_at(spans, index)
        sequences = range(step.first_sequence, step.first_sequence + step.batch_sequences)
        assert {step_of_sequence(step.span, sequence) for sequence in sequences} == {index}


def test_a_ramp_of_a_real_run_is_found_without_walking_through_it(repository):
    ramp = "phases.warm-up.batch_ramp={start_sequences: 48, add_sequences: 48, tokens: 30B}"
    span, *_ = phase_spans(Recipe.load(repository / "examples" / "yue_7b.yaml", [ramp]))
    assert [stretch.batch_sequences for stretch in span.stretches] == list(range(48, 769, 48))
    for number, stretch in enumerate(span.stretches[:-1], start=1):
        step_tokens = stretch.batch_sequences * 8192
        assert stretch.last_token - step_tokens < number * 2 * 10**9 <= stretch.last_token
    assert span.last_token - 768 * 8192 < 240 * 10**9 <= span.last_token


def test_three_phases_compose_warm_up_stable_and_decay(recipe):
    """WSD (https://arxiv.org/abs/2404.06395): every phase is 640 tokens, ten steps of 64."""
    shapes = [("warm-up", "linear", 0, 1e-2), ("stable", "constant", 1e-2, 1e-2), ("decay", "linear", 1e-2, 1e-3)]
    phases = [
        recipe.phases[0].model_copy(
            update={"name": name, "tokens": 640, "learning_rate": LearningRate(shape=shape, start=start, end=end)}
        )
        for name, shape, start, end in shapes
    ]
    spans = phase_spans(recipe.model_copy(update={"phases": phases}))
    rates = [step_at(spans, index).learning_rate for index in range(30)]
    assert rates[:10] == pytest.approx([k * 1e-3 for k in range(10)])
    assert rates[10:20] == [1e-2] * 10
    assert rates[20:] == pytest.approx([1e-2 - k * 9e-4 for k in range(10)])

"""The shipped recipes to the token: steps, learning rate and mixture on both sides of every phase boundary."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from megatron_music.corpus.blend import run_stream
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.recipe.phases import phase_spans, step_at
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.kinds import Kind

# Steps before each phase but the first, tokens consumed by then (a multiple of the step's, the first at or above the
# sum of the budgets), the learning rate of the last step before it and of its own first step; then the run's end.
YUE = [
    (38_147, 240_000_172_032, 2.9999235072e-4, 3e-4),  # 3e-4 x 239,993,880,576 / 240B
    (158_946, 1_000_001_765_376, 3e-4, 3e-4),
    (278_156, 1_750_006_235_136, 3e-4, 2.9999993525e-4),  # 3e-5 + 2.7e-4 (1 + cos(pi x 6,235,136 / 20B)) / 2
    (281_334, 1_770_000_482_304, 3.0000056204e-5, None),
]
BOUNDARIES = {
    "yue_7b": YUE,
    "yue_2b": YUE,
    "yue_0.5b": [
        (1_510, 9_500_098_560, 2.9980443486e-4, 3e-4),
        (6_279, 39_504_052_224, 3e-4, 3e-4),
        (11_000, 69_206_016_000, 3e-4, 2.9996232797e-4),
        (11_127, 70_005_030_912, 3.0001654012e-5, None),
    ],
    "yue_stage2": [(3_179, 20_000_538_624, 2.9991370752e-4, 3e-4), (317_892, 2_000_003_530_752, 3e-5, None)],
    "quickstart": [
        (147, 150_528, 1.196032e-3, 1.2e-3),
        (2_002, 2_050_048, 1.2e-3, 1.2e-3),
        (2_784, 2_850_816, 1.2e-3, 1.1999994630e-3),
        (4_639, 4_750_336, 2.0000381761e-5, None),
    ],
    "quickstart_stage2": [
        (49, 50_176, 1.96608e-3, 2e-3),
        (733, 750_592, 2e-3, 1.9999934280e-3),
        (1_066, 1_251_424, 1.0000012000e-4, None),
    ],
}  # fmt: skip
THIRDS = {"en_zh": Fraction(2, 3), "other": Fraction(1, 3)}
WARM_UP = {"lyrics_to_song": Fraction(29, 44), "speech": Fraction(1, 11), "mix": Fraction(1, 8),
           "dual_track": Fraction(1, 8)}  # fmt: skip
LONG = {"lyrics_to_song": Fraction(29, 44), "speech": Fraction(1, 11), "dual_track": Fraction(1, 4)}
STAGE_1 = [
    {f"{task}_en_zh": share for task, share in WARM_UP.items()},
    {f"{task}_{part}": share * of for task, share in WARM_UP.items() for part, of in THIRDS.items()},
    {f"{task}_{part}": share * of for task, share in LONG.items() for part, of in THIRDS.items()},
    {"lyrics_to_song_best": Fraction(2, 3), "reference_best": Fraction(1, 3)},
]
QUICK = {"lyrics_to_song": Fraction(3, 4), "mix": Fraction(1, 8), "dual_track": Fraction(1, 8)}
MIXTURES = {
    "yue_7b": STAGE_1,
    "yue_2b": STAGE_1,
    "yue_0.5b": STAGE_1,
    "yue_stage2": [{f"residual_{track}": Fraction(1, 4) for track in ("mix", "vocals", "accompaniment", "speech")}] * 2,
    "quickstart": [QUICK, QUICK, {"lyrics_to_song": Fraction(3, 4), "dual_track": Fraction(1, 4)},
                   {"lyrics_to_song": Fraction(2, 3), "reference": Fraction(1, 3)}],
    "quickstart_stage2": [{"residual": Fraction(1)}] * 3,
}  # fmt: skip


@pytest.fixture(params=BOUNDARIES)
def name(request):
    return request.param


@pytest.fixture
def recipe(repository, tmp_path, name):
    """A shipped recipe, with a corpus of two small documents a source."""
    recipe = Recipe.load(repository / "examples" / f"{name}.yaml", [f"corpus={tmp_path}"])
    for source in recipe.source_names:
        with IndexedWriter(tmp_path / source, {"vocabulary": "any"}) as writer:
            for length in (20_000, 13_001):
                writer.add(np.arange(length), np.full(length, Kind.MIX))
    return recipe


def test_steps_and_learning_rates_on_both_sides_of_every_boundary(recipe, name):
    spans = phase_spans(recipe)
    assert [(span.last_step, span.last_token) for span in spans] == [known[:2] for known in BOUNDARIES[name]]
    budget = 0
    for span, (step, tokens, last_rate, next_rate) in zip(spans, BOUNDARIES[name], strict=True):
        last = step_at(spans, step - 1)
        budget += span.phase.tokens
        assert last.span is span and last.tokens_before < budget <= last.tokens_after == tokens
        assert last.learning_rate == pytest.approx(last_rate, rel=1e-9)
        if next_rate is not None:
            following = step_at(spans, step)
            assert following.span.index == span.index + 1 and following.tokens_before == tokens
            assert following.learning_rate == pytest.approx(next_rate, rel=1e-9)
    assert step_at(spans, 0).learning_rate == 0


def test_mixtures_on_both_sides_of_every_boundary(recipe, name):
    spans, stream = phase_spans(recipe), run_stream(recipe)
    for span, shares in zip(spans, MIXTURES[name], strict=True):
        before, after = (stream.consumed(at) for at in (span.first_sequence, span.last_sequence))
        tokens = span.last_token - span.first_token
        for source in recipe.source_names:
            # To a sample: less than one context from the exact share.
            assert abs(after[source] - before[source] - shares.get(source, 0) * tokens) <= span.phase.context_tokens
    for (before, after), (old, new) in zip(pairwise(spans), pairwise(MIXTURES[name]), strict=True):
        last, following = step_at(spans, before.last_step - 1), step_at(spans, after.first_step)
        for step, shares in ((last, old), (following, new)):
            first = step.first_sequence
            given = stream.consumed(first + step.batch_sequences)
            seen = {source for source, count in stream.consumed(first).items() if given[source] > count}
            # The smallest of the 7B's sources comes some 32 times in a batch; a quickstart batch holds few samples.
            assert seen == set(shares) if step.batch_sequences >= 384 else seen <= set(shares)
        lengths = [len(stream.sample(after.first_sequence + offset).ids) for offset in (-1, 0)]
        assert lengths == [before.phase.context_tokens + 1, after.phase.context_tokens + 1]

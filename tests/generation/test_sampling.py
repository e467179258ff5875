"""Sampling against transformers' processors, which the reference program uses."""

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from megatron_music.errors import InputError
from megatron_music.generation.sampling import SamplingSettings, choose, guide, normalisers, penalise


@pytest.fixture
def scores():
    return torch.randn(400, generator=torch.Generator().manual_seed(3)) * 3


def draws(scores, allowed, settings, number=4000):
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(len(scores))
    for _ in range(number):
        drawn = float(torch.rand(1, generator=generator))
        counts[choose(torch.cat([scores[ids.start : ids.stop] for ids in allowed]), allowed, settings, drawn)] += 1
    return counts / number


def test_published_settings_are_the_defaults():
    settings = SamplingSettings()
    assert (settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty) == (1.0, 50, 0.93, 1.1)
    assert (settings.guidance_first, settings.guidance_rest) == (1.5, 1.2)
    assert (settings.min_new_tokens, settings.max_new_tokens) == (100, 3000)


def test_guidance_equals_transformers_between_log_probabilities(scores):
    unconditional = scores.flip(0) * 0.5
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model=None)
    processor.get_unconditional_logits = lambda input_ids: unconditional[None, None]
    expected = processor(torch.zeros(1, 1, dtype=torch.long), scores[None])[0]
    both = torch.stack([scores, unconditional])
    c, u = both[:, [*range(100, 300), 7]] - normalisers(both)[:, None]
    torch.testing.assert_close(guide(c, u, 1.5), torch.cat([expected[100:300], expected[7:8]]))
    torch.testing.assert_close(guide(c, None, 1.5), torch.log_softmax(scores, -1)[[*range(100, 300), 7]])


def test_normalisers_are_those_of_a_softmax_however_far_the_rows_lie_apart():
    rows = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)) * 4
    for shift in (0.0, 30.0, -90.0, 500.0):
        shifted = rows + torch.tensor([[0.0], [shift], [-shift / 2]])
        for each in (shifted, shifted.t().contiguous().t()):
            torch.testing.assert_close(normalisers(each), torch.logsumexp(shifted, -1), atol=1e-5, rtol=1e-6)
    rows[1, 77] = 300.0  # far above those that are looked at first
    torch.testing.assert_close(normalisers(rows), torch.logsumexp(rows, -1))


def test_penalty_equals_transformers(scores):
    seen_ids = [3, 5, 5, 17, 399]
    seen = torch.zeros(400, dtype=torch.bool)
    seen[seen_ids] = True
    expected = RepetitionPenaltyLogitsProcessor(1.1)(torch.tensor([seen_ids]), scores[None].clone())[0]
    torch.testing.assert_close(penalise(scores, seen, 1.1), expected)
    assert penalise(scores, seen, 1.0) is scores


def test_draws_follow_transformers_distribution_over_the_allowed_ids(scores):
    allowed = [range(100, 300), range(7, 8)]
    masked = torch.full_like(scores, -torch.inf)
    for ids in allowed:
        masked[ids.start : ids.stop] = scores[ids.start : ids.stop]
    warped = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(20)(None, masked[None] / 1.7))[0]
    expected = torch.softmax(warped, -1)
    found = draws(scores, allowed, SamplingSettings(temperature=1.7, top_k=20, top_p=0.8))
    assert set(found.nonzero().flatten().tolist()) == set(expected.nonzero().flatten().tolist())
    assert (found - expected).abs().max() < 0.03


def test_a_draw_goes_through_the_kept_ids_from_the_most_probable_one(scores):
    allowed = [range(400)]
    order = scores.argsort(descending=True).tolist()
    probabilities = torch.softmax(scores.double(), -1)[order]
    settings = SamplingSettings(top_k=0, top_p=0.5)
    kept = 1 + int((probabilities.cumsum(-1)[:-1] < 0.5).sum())
    edges = probabilities[:kept].cumsum(-1) / probabilities[:kept].sum()
    assert kept > 3
    for place in range(kept):
        for drawn in (edges[place] - 1e-4, edges[place] - 0.9 * probabilities[place]):
            assert choose(scores, allowed, settings, float(drawn)) == order[place]
    assert choose(scores, allowed, settings, 0.0) == order[0]
    assert choose(scores, allowed, settings, 1 - 2**-53) == order[kept - 1]


def test_zero_temperature_takes_the_most_probable_allowed_id(scores):
    best = 50 + int(scores[50:90].argmax())
    settings = SamplingSettings(temperature=0)
    assert choose(scores[50:90], [range(50, 90)], settings, 0.9) == best
    moved = torch.cat([scores[best + 1 : 90], scores[best : best + 1]])
    assert choose(moved, [range(best + 1, 90), range(best, best + 1)], settings, 0.9) == best


@pytest.mark.parametrize(
    "field, value, option",
    [
        ("temperature", -1, "--temperature"),
        ("top_k", -1, "--top-k"),
        ("top_p", 0, "--top-p"),
        ("top_p", 1.5, "--top-p"),
        ("repetition_penalty", 0, "--repetition-penalty"),
        ("max_new_tokens", 1, "--max-tokens"),
        ("guidance_rest", -1, "--guidance-after"),
    ],
)
def test_settings_out_of_range_are_named_as_the_options_of_generate(field, value, option):
    with pytest.raises(InputError, match=f"^{option}: "):
        SamplingSettings(**{field: value})


def test_a_minimum_above_the_maximum_is_refused():
    with pytest.raises(InputError, match="--min-tokens: 20 is more than --max-tokens 10; lower it"):
        SamplingSettings(min_new_tokens=20, max_new_tokens=10)

"""What the processes of a run see together: the recipe's samples in their order, however many there are."""

import itertools

import numpy as np
import pytest

from megatron_music.corpus.blend import run_stream
from megatron_music.recipe.phases import phase_spans, step_at
from megatron_music.training.data import Loader, batches_of
from megatron_music.training.marks import Marks


@pytest.fixture
def recipe(make_recipe):
    """Three phases of other mixtures and contexts, 8 to 24 sequences a step in micro-batches of two."""
    batch = {"batch_sequences": 8, "micro_batch_sequences": 2}
    phases = [phase | batch for phase in make_recipe().model_dump(mode="json")["phases"]]
    ramp = {"start_sequences": 8, "add_sequences": 8, "tokens": 1024}
    phases[1] |= {"tokens": 2048, "batch_sequences": 24, "batch_ramp": ramp}
    return make_recipe(phases=phases)


def by_step(recipe, copies: int, first_step: int = 0) -> list[list[list[int]]]:
    """The samples of each step from ``first_step`` on, as ``copies`` loaders, each with a stream of its own, give them.

    A step's micro-batches are taken from the processes in turn, as their gradients are summed.
    """
    spans = phase_spans(recipe)
    loaders = [Loader(run_stream(recipe), spans, [Marks()] * len(spans), rank, copies) for rank in range(copies)]
    steps = []
    for index in range(first_step, spans[-1].last_step):
        shares = [loader.batches(step_at(spans, index)) for loader in loaders]
        assert len({len(share) for share in shares}) == 1
        in_turn = itertools.chain.from_iterable(zip(*shares, strict=True))
        steps.append([row for batch in in_turn for row in np.concatenate([batch.ids, batch.kinds], axis=1).tolist()])
    for loader in loaders:
        loader.close()
    return steps


def straight(recipe) -> list[list[list[int]]]:
    """The same from the stream alone, sample by sample."""
    stream, spans = run_stream(recipe), phase_spans(recipe)
    samples = [stream.sample(index) for index in range(len(stream))]
    rows = [np.concatenate([sample.ids, sample.kinds]).tolist() for sample in samples]
    steps = [step_at(spans, index) for index in range(spans[-1].last_step)]
    return [rows[step.first_sequence : step.first_sequence + step.batch_sequences] for step in steps]


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_any_number_of_processes_sees_the_samples_in_their_order(recipe, copies):
    steps = straight(recipe)
    assert [len(rows) for rows in steps] == [8] * 2 + [8, 8, 16, 24, 24] + [8]
    assert by_step(recipe, copies) == steps


def test_a_resume_from_any_step_on_another_number_of_processes_sees_exactly_what_is_left(recipe):
    whole = by_step(recipe, 4)
    for first_step in range(len(whole)):
        for copies in (1, 2):
            assert by_step(recipe, copies, first_step) == whole[first_step:]


def test_every_sample_is_dealt_once_whatever_the_micro_batch(recipe):
    stream = run_stream(recipe)
    for size, copies in [(1, 1), (1, 2), (2, 4), (4, 2), (8, 1)]:
        dealt = [batches_of(stream, 8, 8, size, rank, copies, Marks()) for rank in range(copies)]
        rows = sorted(row for batches in dealt for batch in batches for row in batch.ids.tolist())
        assert rows == sorted(stream.sample(index).ids.tolist() for index in range(8, 16))

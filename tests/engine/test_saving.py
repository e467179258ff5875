"""Checkpoints written beside training: their pieces, what they hold, and what a failure leaves."""

import itertools
import math

import numpy as np
import pytest
import saving_workers
import torch

from megatron_music.conversion.checkpoint import MASTER_PREFIX, CheckpointReader
from megatron_music.engine.integrity import size_fault, sum_fault
from megatron_music.engine.pieces import boxes
from megatron_music.engine.processes import launch


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 6), (6, 1)])
def test_boxes_make_up_any_run_of_numbers(shape):
    numbers = np.arange(math.prod(shape)).reshape(shape)
    for start, end in itertools.combinations(range(numbers.size + 1), 2):
        found = [
            numbers[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))].ravel()
            for offsets, sizes in boxes(shape, start, end)
        ]
        np.testing.assert_array_equal(np.concatenate(found), np.arange(start, end))
        assert len(found) <= 2 * len(shape) - 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    launch(saving_workers.save_and_fail, 2, folder)
    return folder


def tensors(checkpoint):
    """Every tensor of a checkpoint, by name."""
    reader = CheckpointReader(checkpoint)
    return {name: reader.read(name) for name in reader._metadata.state_dict_metadata if name in reader}


def test_a_process_that_can_not_write_fails_the_checkpoint_on_all_and_leaves_nothing(saved):
    found = saving_workers.read(saved)
    first, second = found["faults"]
    assert first == second and first[0] is None and first[2:] == [None, None]
    assert first[1] == f"{saved}/.second/__1_0.distcp: File too large"
    assert found["left"] == ["first"]


@pytest.mark.parametrize("name", ["first", "beside"])
def test_every_file_is_listed_and_whole(saved, name):
    assert size_fault(saved / name) is None
    assert [sum_fault(saved / name, share, 3) for share in range(3)] == [None] * 3
    # Both copies of the model write: weights are dealt out, the optimizer's state is where it is.
    sizes = [(saved / name / f"__{rank}_0.distcp").stat().st_size for rank in range(2)]
    assert min(sizes) > 0.8 * max(sizes)


def test_what_is_written_beside_training_is_what_was_there_before_it(saved):
    first, beside = tensors(saved / "first"), tensors(saved / "beside")
    assert first.keys() == beside.keys()
    for name in first:
        assert torch.equal(first[name], beside[name]), name


def test_loading_and_saving_changes_nothing(saved):
    first, again = tensors(saved / "first"), tensors(saved / "again")
    for name in first:
        assert torch.equal(first[name], again[name]), name


def test_weights_are_the_rounded_master_weights(saved):
    """They are gathered from the processes that update them only in the next step, or for a checkpoint."""
    written = tensors(saved / "first")
    weights = [name for name in written if MASTER_PREFIX + name in written]
    assert len(weights) >= 9
    for name in weights:
        assert written[name].dtype == torch.bfloat16
        assert torch.equal(written[name], written[MASTER_PREFIX + name].bfloat16()), name

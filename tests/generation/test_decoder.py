"""The decoder against transformers' own forward pass over whole sequences."""

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_music.generation import decoder as decoder_module
from megatron_music.generation.decoder import LlamaDecoder


@pytest.fixture
def network(make_model):
    return LlamaForCausalLM.from_pretrained(make_model("model"), local_files_only=True).eval()


def whole_sequence_logits(network, ids):
    with torch.inference_mode():
        return network(torch.tensor([ids])).logits[0]


def test_rows_of_different_lengths_score_as_whole_sequences(network, monkeypatch):
    monkeypatch.setattr(decoder_module, "READING_CHUNK", 7)
    torch.manual_seed(1)
    long, short = torch.randint(0, 384, (60,)).tolist(), torch.randint(0, 384, (35,)).tolist()
    decoder = LlamaDecoder(network, rows=2, positions=64)
    decoder.read([long[:20]], [0])
    decoder.read([long[20:50]], [0])
    decoder.read([short[:25]], [1])
    outputs = [decoder.read([[long[50 + step]], [short[25 + step]]]) for step in range(8)]
    outputs.append(decoder.read([long[58:60], short[33:35]]))
    assert decoder.lengths == [60, 35]
    steps = [*range(8), 9]
    for row, (ids, start) in enumerate([(long, 50), (short, 25)]):
        expected = whole_sequence_logits(network, ids)
        for step, output in zip(steps, outputs, strict=True):
            torch.testing.assert_close(decoder.score(output)[row], expected[start + step], atol=2e-5, rtol=1e-5)


def test_rows_of_one_length_and_a_row_that_starts_anew(network):
    decoder = LlamaDecoder(network, rows=2, positions=16)
    decoder.read([[1, 2, 3], [4, 5, 6]])
    output = decoder.read([[7], [8]])
    torch.testing.assert_close(
        decoder.score(output)[1], whole_sequence_logits(network, [4, 5, 6, 8])[-1], atol=2e-5, rtol=1e-5
    )
    decoder.forget(0)
    output = decoder.read([[9, 10]])
    torch.testing.assert_close(
        decoder.score(output)[0], whole_sequence_logits(network, [9, 10])[-1], atol=2e-5, rtol=1e-5
    )
    some = decoder.score(output, range(306, 322))
    torch.testing.assert_close(some, decoder.score(output)[:, 306:322])


def test_rows_that_are_no_neighbours_are_read_beside_rows_at_rest(network):
    decoder = LlamaDecoder(network, rows=4, positions=16)
    decoder.read([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
    output = decoder.read([[13], [14], [15]], [0, 2, 3])
    assert decoder.lengths == [4, 3, 4, 4]
    for found, ids in zip(decoder.score(output), ([1, 2, 3, 13], [7, 8, 9, 14], [10, 11, 12, 15]), strict=True):
        torch.testing.assert_close(found, whole_sequence_logits(network, ids)[-1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("static", [False, True])
def test_tokens_that_were_taken_back_leave_nothing_behind(network, static):
    decoder = LlamaDecoder(network, 2, 16, static)
    decoder.read([[1, 2, 3], [4, 5, 6]])
    decoder.read([[7], [8]])
    decoder.read([[9]], [1])
    decoder.take_back(0, 1)
    decoder.take_back(1, 2)
    assert decoder.lengths == [3, 3]
    output = decoder.read([[10], [11]])
    for found, ids in zip(decoder.score(output), ([1, 2, 3, 10], [4, 5, 6, 11]), strict=True):
        torch.testing.assert_close(found, whole_sequence_logits(network, ids)[-1], atol=2e-5, rtol=1e-5)


def test_the_static_step_reads_any_rows_up_to_the_last_position(network):
    """The function that GPUs capture: rows of all lengths, rows at rest, two tokens at once, a full row."""
    torch.manual_seed(2)
    ids = torch.randint(0, 384, (3, 12)).tolist()
    decoder = LlamaDecoder(network, 3, 12, static=True)
    decoder.read([ids[0][:11], ids[1][:11]], [0, 1])
    decoder.read([ids[2][:5]], [2])
    outputs = [(0, 12, decoder.read([ids[0][11:]], [0])[0])]
    for place in (5, 7):
        outputs.append((2, place + 2, decoder.read([ids[2][place : place + 2]], [2])[0]))
    both = decoder.read([[ids[1][11]], [ids[2][9]]], [1, 2])
    outputs += [(1, 12, both[0]), (2, 10, both[1])]
    assert decoder.lengths == [12, 12, 10]
    for row, length, output in outputs:
        expected = whole_sequence_logits(network, ids[row][:length])[-1]
        torch.testing.assert_close(decoder.score(output[None])[0], expected, atol=2e-5, rtol=1e-5)


def test_rows_that_go_on_ask_nothing_of_the_host(network, monkeypatch):
    """On a GPU a tensor from the host's memory waits for the device; from the second token on there is none."""
    torch.manual_seed(3)
    ids_RT = torch.randint(0, 384, (2, 12))
    decoder = LlamaDecoder(network, 3, 12, static=True)
    decoder.read(ids_RT[:, :5], [0, 2])
    decoder.read(ids_RT[:, 5:6], [0, 2])

    def refuse(*_, **__):
        raise AssertionError("a tensor comes from the host")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "tensor", refuse)
        outputs = [decoder.read(ids_RT[:, place : place + 2], [0, 2]) for place in (6, 8)]
    decoder.take_back(2, 1)
    read_again = decoder.read(ids_RT[1:, 9:10], [2])
    found = [*decoder.score(torch.cat([*outputs, read_again]))]
    for (row, length), logits in zip([(0, 8), (1, 8), (0, 10), (1, 10), (1, 10)], found, strict=True):
        expected = whole_sequence_logits(network, ids_RT[row, :length].tolist())[-1]
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)


def test_the_static_step_is_nothing_but_operations_on_tensors(network):
    """Torch traces it whole: no branch, no value that Python would wait for; else it could not be replayed."""
    decoder = LlamaDecoder(network, 2, 8, static=True)
    decoder.read([[1, 2, 3], [4, 5, 6]])
    step = decoder._static
    with torch.inference_mode():
        step.ids_R.copy_(torch.tensor([7, 8]))
        step.positions_R.copy_(torch.tensor([3, 3]))
        torch.testing.assert_close(torch.compile(step.step, backend="eager", fullgraph=True)(), step.step())


def test_joined_weights_are_the_networks_own(network):
    expected = {name: weight.clone() for name, weight in network.state_dict().items()}
    decoders = [LlamaDecoder(network, 1, 4) for _ in range(2)]
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    for layer, of_network in zip(decoders[1].layers, network.model.layers, strict=True):
        assert layer.qkv[0].data_ptr() == of_network.self_attn.q_proj.weight.data_ptr()
        assert layer.gate_up[0].data_ptr() == of_network.mlp.gate_proj.weight.data_ptr()
    assert decoders[0].layers[0].qkv[0].data_ptr() == decoders[1].layers[0].qkv[0].data_ptr()


def test_more_tokens_than_positions_are_refused(network):
    decoder = LlamaDecoder(network, rows=1, positions=4)
    decoder.read([[1, 2, 3]])
    with pytest.raises(ValueError, match="5 tokens do not fit into 4 positions"):
        decoder.read([[4, 5]])

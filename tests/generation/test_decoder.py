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


def test_more_tokens_than_positions_are_refused(network):
    decoder = LlamaDecoder(network, rows=1, positions=4)
    decoder.read([[1, 2, 3]])
    with pytest.raises(ValueError, match="5 tokens do not fit into 4 positions"):
        decoder.read([[4, 5]])

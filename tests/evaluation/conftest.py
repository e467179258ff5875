"""Tiny model folders with random weights: enough to test how a model is measured, not how good it is."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_music.vocabulary.text import train_text_tokenizer

VOCABULARY = {
    "name": "tiny",
    "text": {"size": 300},
    "specials": {"first": 300, "tokens": ["<EOD>", "<SOA>", "<EOA>", "<stage_1>", "<stage_2>", "<embedded>"]},
    "codecs": [{"name": "embedded", "marker": "<embedded>", "first": 306, "codebooks": 4, "codebook_size": 16}],
    "size": 370,
    "padded_size": 384,
    "default_codec": "embedded",
}


@pytest.fixture(scope="session")
def tiny_vocabulary() -> dict:
    """The content of the tiny models' vocabulary file."""
    return VOCABULARY


@pytest.fixture(scope="session")
def text_tokenizer_file(tmp_path_factory) -> Path:
    """A SentencePiece model of 300 pieces."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_text_tokenizer(["[verse]\nla la la the sun is high\n\n", "[chorus]\nsing with me\n\n"], path, 300)
    return path


@pytest.fixture
def make_model(tmp_path, text_tokenizer_file):
    """Writes a model folder: ``make_model("stage1", positions=512, seed=0)``."""

    def make(folder_name: str, positions: int = 512, seed: int = 0, **vocabulary) -> Path:
        folder = tmp_path / folder_name
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=384,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        (folder / "vocabulary.yaml").write_text(yaml.safe_dump(VOCABULARY | vocabulary))
        (folder / "tokenizer.model").write_bytes(text_tokenizer_file.read_bytes())
        return folder

    return make

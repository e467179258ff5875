"""Fixtures that many rooms share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))  # for the modules beside this one


LONGEST = ("test_not_killed.py", "test_run.py", "test_submit.py")
"""Files of minutes. Where files are shared out over processes, one that began last would be waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def yue_data() -> Path:
    """The example data published with YuE, which lies beside the checkout on our machines only."""
    folder = REPOSITORY.parent / "shared" / "data" / "yue"
    if not folder.is_dir():
        pytest.skip("the YuE example data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_vocabulary() -> dict:
    """The content of the tiny models' vocabulary file."""
    return yaml.safe_load((REPOSITORY / "tests" / "data" / "tiny_vocabulary.yaml").read_text())


@pytest.fixture(scope="session")
def text_tokenizer_file(tmp_path_factory) -> Path:
    """A SentencePiece model of 300 pieces."""
    from megatron_music.vocabulary.text import train_text_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_text_tokenizer(["[verse]\nla la la the sun is high\n\n", "[chorus]\nsing with me\n\n"], path, 300)
    return path


@pytest.fixture(scope="session")
def write_model(text_tokenizer_file, tiny_vocabulary):
    """Writes a model folder with random weights: ``write_model(folder, positions=512, seed=0)``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def write(folder: Path, positions: int = 512, seed: int = 0, head_dim: int = 8, **vocabulary) -> Path:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=tiny_vocabulary["padded_size"],
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head_dim,
            max_position_embeddings=positions,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        (folder / "vocabulary.yaml").write_text(yaml.safe_dump(tiny_vocabulary | vocabulary))
        (folder / "tokenizer.model").write_bytes(text_tokenizer_file.read_bytes())
        return folder

    return write


@pytest.fixture
def make_model(tmp_path, write_model):
    """The same below the test's own folder: ``make_model("stage1", positions=512, seed=0)``."""
    return lambda folder, *options, **more: write_model(tmp_path / folder, *options, **more)


@pytest.fixture(scope="session")
def _slurm_daemons() -> Iterator:
    from slurm import OneNodeSlurm, skip_without_slurm

    skip_without_slurm()
    slurm = OneNodeSlurm()
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture
def slurm(_slurm_daemons, monkeypatch) -> Iterator:
    """A ``slurm.OneNodeSlurm`` that takes what the test submits, and that has nothing left of it afterwards."""
    monkeypatch.setenv("SLURM_CONF", str(_slurm_daemons.configuration))
    yield _slurm_daemons
    _slurm_daemons.clear()

"""Which backend sings, where there is no vLLM."""

import sys

import pytest

from megatron_music.errors import InputError
from megatron_music.generation.backend import open_backend
from megatron_music.generation.song import Models, Studio


def test_a_backend_that_is_not_known_is_refused(make_model):
    models = Models(make_model("one"), make_model("two"), backend="llama.cpp")
    with pytest.raises(InputError, match="--backend: 'llama.cpp' is not known; choose transformers or vllm"):
        Studio(models)


def test_where_vllm_is_missing_one_line_tells_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        InputError, match="--backend: vLLM can't be imported .*; install it as docs/generation.md tells"
    ):
        open_backend("vllm", [], "cpu", "float32")

"""Files of weights that are written tensor by tensor."""

import torch
from safetensors.torch import save_file

from megatron_music.conversion.weight_files import NewTensor, write_weight_file


def test_equals_what_safetensors_writes_with_all_tensors_in_memory(tmp_path):
    torch.manual_seed(1)
    shapes = {"model.layers.10.b": (3, 5), "model.layers.2.b": (4,), "lm_head": (7, 2), "model.a": (1, 2, 3), "b": (1,)}
    types = [torch.bfloat16, torch.float32, torch.float16, torch.bfloat16, torch.float64]
    tensors = {name: torch.randn(shape).to(dtype) for (name, shape), dtype in zip(shapes.items(), types, strict=True)}
    save_file(tensors, tmp_path / "expected", metadata={"format": "pt"})
    loaded = []

    def load(name):
        loaded.append(name)
        return tensors[name].flatten()  # in its order of numbers, in another shape

    new = [NewTensor(name, tuple(t.shape), t.dtype, lambda name=name: load(name)) for name, t in tensors.items()]
    write_weight_file(tmp_path / "written", new)
    assert (tmp_path / "written").read_bytes() == (tmp_path / "expected").read_bytes()
    assert sorted(loaded) == sorted(shapes)

"""YuE's own X-Codec checkpoint (xcodec_mini_infer's ``final_ckpt/ckpt_00360000.pth``) as transformers' XcodecModel.

Both are the same network under other names. YuE's are those of its modules: a DAC encoder and decoder as nested
``Sequential`` s (``encoder.block.1.block.0.block.1``), the semantic encoder and decoder with wrapped convolutions
(``.conv.conv``), EnCodec's residual quantiser (``quantizer.vq.layers.0._codebook``), three linear layers
(``fc_prior``, ``fc_post1``, ``fc_post2``) and a HuBERT-base in transformers' own names. Weight-normalised layers are
stored as magnitude and direction in either of torch's spellings.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

from megatron_music.errors import InputError
from megatron_music.weights import require_content

_MEND = "name xcodec_mini_infer's final_ckpt/ckpt_00360000.pth"
_ACOUSTIC_NAME = re.compile(r"(encoder\.block|decoder_2\.model)\.(\d+)(?:\.block\.(\d+)(?:\.block\.(\d+))?)?\.(.+)")
_RESIDUAL_UNIT_LAYERS = ("snake1", "conv1", "snake2", "conv2")
_OTHER_NAMES = (
    (re.compile(r"^fc_prior\."), "fc."),
    (re.compile(r"^fc_post1\."), "fc1."),
    (re.compile(r"^fc_post2\."), "fc2."),
    (re.compile(r"^quantizer\.vq\.layers\.(\d+)\._codebook\."), r"quantizer.quantizers.\1.codebook."),
    (re.compile(r"^((?:en|de)coder_semantic\..*\bconv[12]?)\.conv\.(weight|bias)$"), r"\1.\2"),
)
_MASK_EMBEDDING = "semantic_model.masked_spec_embed"
_MAGNITUDE, _DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


def yue_config() -> XcodecConfig:
    """The configuration of YuE's X-Codec: 12 codebooks of 1,024 at 50 frames a second."""
    return XcodecConfig(
        target_bandwidths=(0.5, 1, 1.5, 2, 4, 6),
        acoustic_model_config=DacConfig(
            encoder_hidden_size=64,
            downsampling_ratios=[8, 5, 4, 2],
            decoder_hidden_size=1024,
            upsampling_ratios=[8, 5, 4, 2],
            hidden_size=256,
        ),
        semantic_model_config=HubertConfig(),
    )


def load_yue_checkpoint(path: str | os.PathLike, config: XcodecConfig | None = None) -> XcodecModel:
    """Reads YuE's checkpoint into a model in which every tensor comes from the file.

    The file is a pickle that names classes of other programs; none of them is imported or called.

    Raises:
        InputError: the file can't be read, has no codec in it, or its tensors are not those of the configuration
            (by default ``yue_config()``).
    """
    path = Path(path)
    tensors = {transformers_name(name): tensor for name, tensor in _read_tensors(path).items()}
    model = XcodecModel(config or yue_config())
    expected = model.state_dict()
    state = match_weight_norm(tensors, expected)
    if _MASK_EMBEDDING in expected:
        # Serves HuBERT's training only, and some versions of transformers do not store it.
        state.setdefault(_MASK_EMBEDDING, expected[_MASK_EMBEDDING])
    differing = {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
    for found, names in (
        ("lacks some of X-Codec's tensors", expected.keys() - state.keys()),
        ("has tensors that X-Codec has not", state.keys() - expected.keys()),
        ("has tensors of another shape than X-Codec's", differing),
    ):
        if names:
            raise InputError(path, f"{found}: {len(names)}, first {min(names)}", _MEND)
    model.load_state_dict(state)
    return model.eval()


def transformers_name(name: str) -> str:
    """The name in XcodecModel of a tensor of YuE's; weight-norm suffixes and HuBERT's names stay as they are."""
    acoustic = _ACOUSTIC_NAME.fullmatch(name)
    if acoustic is None:
        for pattern, replacement in _OTHER_NAMES:
            name = pattern.sub(replacement, name)
        return name
    side, outer, inner, unit_layer, tail = acoustic.groups()
    encoding = side == "encoder.block"
    stem = "acoustic_encoder" if encoding else "acoustic_decoder"
    if inner is None:
        layer = "snake1" if tail == "alpha" else "conv1" if outer == "0" else "conv2"
        return f"{stem}.{layer}.{tail}"
    stem = f"{stem}.block.{int(outer) - 1}"
    if unit_layer is None:
        layer = "snake1" if tail == "alpha" else "conv1" if encoding else "conv_t1"
        return f"{stem}.{layer}.{tail}"
    unit = int(inner) + 1 if encoding else int(inner) - 1
    return f"{stem}.res_unit{unit}.{_RESIDUAL_UNIT_LAYERS[int(unit_layer)]}.{tail}"


def match_weight_norm(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rewrites weight-normalised layers to the spelling that ``expected`` has for each of them.

    The spellings: ``weight_g`` and ``weight_v``; ``parametrizations.weight.original0`` and ``original1``; and the
    product ``weight`` = direction * magnitude / norm of the direction over the axes on which the magnitude has one
    entry.
    """
    state = {_parametrized(name): tensor for name, tensor in state.items()}
    matched = {}
    for name, tensor in state.items():
        stem = name.removesuffix(".weight").removesuffix(_MAGNITUDE).removesuffix(_DIRECTION)
        if name == f"{stem}.weight" and stem + _MAGNITUDE in expected:
            matched[stem + _MAGNITUDE] = _norm_like(tensor, expected[stem + _MAGNITUDE].shape)
            matched[stem + _DIRECTION] = tensor
        elif name == stem + _MAGNITUDE and name not in expected and stem + _DIRECTION in state:
            direction = state[stem + _DIRECTION]
            matched[f"{stem}.weight"] = direction * (tensor / _norm_like(direction, tensor.shape))
        elif name != stem + _DIRECTION or name in expected:
            matched[name] = tensor
    return matched


def _parametrized(name: str) -> str:
    for suffix, spelling in ((".weight_g", _MAGNITUDE), (".weight_v", _DIRECTION)):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + spelling
    return name


def _norm_like(direction: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    return torch.linalg.vector_norm(direction, dim=axes, keepdim=True)


class _Foreign:
    """Stands for any class or function of another program in a pickle: takes everything and does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> "_Foreign":
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    append = extend = add = __setstate__


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers only."""

    _HARMLESS = {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
    }

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in self._HARMLESS else _Foreign


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The codec's tensors in float32, by YuE's names; the optimizers' beside them are left on the disk."""
    require_content(path, _MEND)
    if not zipfile.is_zipfile(path):
        raise InputError(path, "is not a PyTorch checkpoint", _MEND)
    try:
        # YuE saved objects of OmegaConf's with the tensors, which `weights_only` refuses.
        pickle_module = SimpleNamespace(__name__="tensors", Unpickler=_TensorUnpickler)
        content = torch.load(path, "cpu", pickle_module=pickle_module, weights_only=False, mmap=True)
    except Exception as error:
        # Damage shows as any of a dozen types, depending on the byte.
        raise InputError(path, f"can't be read as a PyTorch checkpoint ({error})", "fetch the file again") from None
    state = content.get("codec_model", content) if isinstance(content, Mapping) else None
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {name: tensor.float() for name, tensor in items if isinstance(tensor, torch.Tensor)}
    if not tensors:
        raise InputError(path, "holds no tensors under 'codec_model'", _MEND)
    return tensors

"""What the ``config.json`` of a Llama folder says of its network, in the spellings of transformers 4 and 5."""

from pathlib import Path
from typing import Any

from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.recipe.recipe import Network, parse_strict
from megatron_music.weights import require_content

CONFIG = "config.json"
_OF_LLAMA = "name the folder of a Llama network"


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's ``config.json``; raises InputError where it is missing or holds none."""
    path = folder / CONFIG
    require_content(path, "copy the folder again, or name the folder that it is in")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(path, f"model_type is missing: it holds {config!r:.40}", _OF_LLAMA)
    return config


def network_of(config: dict[str, Any], where: Path) -> Network:
    """The network that a Llama ``config.json`` describes.

    Raises InputError for what this project's network does not have: biases, other activations, scaled or partial RoPE,
    heads of another size, quantised weights; and where two spellings of a field say different things.
    """
    if config.get("model_type") != "llama":
        what = f"model_type is {config.get('model_type')!r}, and only networks of Llama's kind are read"
        raise InputError(where, what, _OF_LLAMA)
    _refuse_quantised(config, where)
    ropes = [config[field] for field in ("rope_parameters", "rope_scaling") if config.get(field)]
    for rope in ropes:
        if not isinstance(rope, dict):
            raise InputError(where, f"the RoPE is {rope!r}, where fields are expected", _OF_LLAMA)
    bases = [fields["rope_theta"] for fields in (*ropes, config) if fields.get("rope_theta") is not None]
    if any(base != bases[0] for base in bases):
        what = f"rope_theta is {bases[0]!r} in one place and {bases[-1]!r} in another"
        raise InputError(where, what, "take out the wrong one")
    try:
        heads = config["num_attention_heads"]
        fields = {
            "hidden_size": config["hidden_size"],
            "layers": config["num_hidden_layers"],
            "attention_heads": heads,
            "key_value_heads": config.get("num_key_value_heads") or heads,
            "ffn_hidden_size": config["intermediate_size"],
            "position_limit": config["max_position_embeddings"],
            "rope_base": bases[0] if bases else 10000.0,
            "norm_epsilon": config["rms_norm_eps"],
            "init_std": config.get("initializer_range", 0.02),
        }
    except KeyError as error:
        raise InputError(where, f"has no {error.args[0]}", _OF_LLAMA) from None
    network = parse_strict(Network, fields, where)
    expected = {
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "hidden_act": (None, "silu", "swish"),
        "head_dim": (None, network.head_size),
        "partial_rotary_factor": (None, 1),
    }
    of_rope = {"partial_rotary_factor": (None, 1), "rope_type": (None, "default"), "type": (None, "default")}
    for found, plain in ((config, expected), *((rope, of_rope) for rope in ropes)):
        for field, values in plain.items():
            if found.get(field) not in values:
                what = f"{field} is {found[field]!r}, which this network does not have"
                raise InputError(where, what, "import a Llama network without it")
    return network


def ties_embeddings(config: dict[str, Any]) -> bool:
    """Whether the embedding serves as head; a Llama network's does not unless it says so."""
    return bool(config.get("tie_word_embeddings"))


def _refuse_quantised(config: dict[str, Any], where: Path) -> None:
    for field in ("quantization_config", "compression_config"):
        if config.get(field):
            options = config[field] if isinstance(config[field], dict) else {}
            what = f"the weights are quantised ({options.get('quant_method', field)})"
            raise InputError(where, what, "import the network that they were made from")

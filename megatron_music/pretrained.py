"""Networks that transformers loads, from a folder or by a name on the hub: whole, or not at all."""

import re
from pathlib import Path
from typing import Any

from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.progress import quiet_transformers
from megatron_music.weight_folder import WeightFolder, snapshot

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def missing_weights(weights: str | Path, example: str) -> InputError:
    """Says that ``weights`` are neither a file, a folder nor a name on the hub as ``example`` is one."""
    return InputError(weights, "no such file or folder", f"check the path, or name a model such as {example}")


def named_weights(weights: str | Path, example: str, model_type: str | None = None) -> str:
    """The folder that holds a model, of those in the hub's cache the snapshot; or a name on the hub as it is.

    Raises InputError where there is neither, the folder lacks weights that transformers would find, or its
    ``config.json`` names no type of model, or another than ``model_type``.
    """
    folder = Path(weights)
    if not folder.is_dir():
        if folder.exists() or not HUB_NAME.fullmatch(str(weights)):
            raise missing_weights(weights, example)
        return str(weights)
    folder = snapshot(folder)
    found = _model_type(read_json(folder / "config.json"))
    if found is None or model_type not in (None, found):
        what = "names no model_type" if found is None else f"model_type is {found!r}, not {model_type}"
        raise InputError(folder / "config.json", what, f"name a model such as {example}")
    WeightFolder.find(folder).for_transformers()
    return str(folder)


def load_pretrained(kind: Any, weights: str, called: str, mend: str, **options: Any) -> Any:
    """What ``kind.from_pretrained`` loads of ``named_weights``; the network is used for a name on the hub alone.

    Args:
        called: what it is to be loaded as, for the message.
        options: of ``from_pretrained``.

    Raises InputError where it can't be loaded, and where tensors are missing or of another shape.
    """
    from transformers import CONFIG_MAPPING

    local = Path(weights).is_dir()
    try:
        if local:
            config = read_json(Path(weights) / "config.json")  # transformers takes no byte order mark
            options["config"] = CONFIG_MAPPING[_model_type(config)].from_dict(config)
        with quiet_transformers():
            model, report = kind.from_pretrained(weights, local_files_only=local, output_loading_info=True, **options)
    except Exception as error:
        # transformers, the hub and safetensors raise many types here; all of them mean that the weights don't load.
        raise InputError(weights, f"can't be loaded as {called} ({error})", mend) from None
    # transformers fills what is missing with random numbers and only warns.
    wrong = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if wrong:
        what = f"lacks {len(wrong)} tensors or has them in another shape, first {wrong[0]}"
        raise InputError(weights, what, "fetch the weights again")
    return model


def _model_type(config: Any) -> str | None:
    return config.get("model_type") if isinstance(config, dict) else None

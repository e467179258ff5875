"""Networks from elsewhere, by the form of the folder that they lie in."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_music.conversion.import_llama import import_llama
from megatron_music.conversion.import_megatron import import_megatron, is_megatron
from megatron_music.errors import InputError
from megatron_music.progress import console

if TYPE_CHECKING:
    from megatron_music.conversion.verify import Verified


def import_network(
    folder: Path,
    out: Path,
    recipe: Path | None = None,
    vocabulary: Path | None = None,
    tokenizer: Path | None = None,
    verify: bool = False,
    say: Callable[[str], None] = console.print,
) -> "Verified | None":
    """Writes a network as a checkpoint, see ``import_llama`` and ``import_megatron``; compares both with ``verify``.

    Raises InputError where the folder is of neither form, or of one that needs or can't have one of the options.
    """
    if not Path(folder).is_dir():
        what = "is a file, and one of several that make a model" if Path(folder).is_file() else "no such folder"
        raise InputError(folder, what, "name a Hugging Face folder or a distributed checkpoint")
    if not is_megatron(folder):
        import_llama(folder, out, vocabulary, tokenizer, say)
    elif recipe is None:
        raise InputError(folder, "is a distributed checkpoint, which does not say its network", "name it by --recipe")
    elif verify:
        raise InputError("--verify", "compares with a Hugging Face folder", "leave it out, or verify an export")
    else:
        import_megatron(folder, out, recipe, vocabulary, tokenizer, say)
    if not verify:
        return None
    from megatron_music.conversion.verify import verify as verified

    return verified(out, folder)

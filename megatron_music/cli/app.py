"""The program `megatron-music`, and options that several of its verbs have."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="megatron-music",
    help="Pretrain music language models on megatron-core: from songs to codec tokens to a model that sings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RecipeFile = Annotated[Path, typer.Argument(help="Recipe file.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes on this machine.", show_default="chosen")]
LyricsTranslation = Annotated[
    str, typer.Option("--translation", help="Of original and translation under one time: first, second or both.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: a.b=c. May be given several times.")
]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the verb; ``main`` reads ``--debug`` itself."""

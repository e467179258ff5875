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
MaxRejected = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        min=0,
        max=1,
        help="End with status 2, behind all else, where a larger share of the songs was rejected.",
        show_default="1: only where no song is left",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: a.b=c. May be given several times.")
]
Device = Annotated[str, typer.Option(help="Where networks run: cpu or cuda.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed draws the same.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")]
Positions = Annotated[int, typer.Option(min=1, help="Audio positions sampled freely.")]

# What a plan reckons with.
GpuKind = Annotated[str, typer.Option(help="Their kind: A100, H100, H200 or H800.")]
Mfu = Annotated[float, typer.Option(help="Share of the BF16 peak that is expected of them.")]

# What a job of SLURM is submitted with.
TimeLimit = Annotated[str | None, typer.Option(help="SLURM time limit.", show_default="the partition's")]
Partition = Annotated[str | None, typer.Option(help="SLURM partition.", show_default="the cluster's")]
Account = Annotated[str | None, typer.Option(help="SLURM account.")]
Environment = Annotated[
    str | None, typer.Option(help="Shell command that sets up `python` in the jobs.", show_default="this very Python")
]
Sbatch = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other option of sbatch, such as exclude=node7.")
]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the verb; ``main`` reads ``--debug`` itself."""

"""`predict`: what small runs tell about a large one."""

import typer

from megatron_music.cli.app import app

predict = typer.Typer(
    help="Know at 0.5B whether 7B is worth its GPUs.",
    no_args_is_help=True,
    epilog="Example: megatron-music predict gate runs/yue_0.5b",
)
app.add_typer(predict, name="predict")


@predict.callback()
def options() -> None:
    """Know at 0.5B whether 7B is worth its GPUs."""

"""Verbs that plan, train and watch a recipe, here or on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_music.cli.app import (
    Account,
    AsJson,
    Environment,
    GpuKind,
    Mfu,
    Overrides,
    Partition,
    Processes,
    RecipeFile,
    Sbatch,
    TimeLimit,
    app,
)

NodeProcesses = Annotated[
    int | None, typer.Option(min=1, help="Processes on each node.", show_default="one for each GPU")
]


@app.command(epilog="Example: megatron-music plan examples/yue_7b.yaml --gpus 512 --gpu H800 --plots plots")
def plan(
    recipe: RecipeFile,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs: plan layout, memory, time and checkpoints too.")
    ] = None,
    gpu: GpuKind = "H800",
    mfu: Mfu = 0.4,
    rank: Annotated[
        list[int] | None, typer.Option(help="Process to look at; several times.", show_default="one of every stage")
    ] = None,
    build: Annotated[bool, typer.Option(help="Build groups and network of these ranks, without memory.")] = True,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures of learning rate and mixture.")] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Check a recipe and print what it will do, and what it takes on a number of GPUs; trains nothing."""
    from megatron_music.cluster.plan import make_plan
    from megatron_music.cluster.plan_output import print_plan
    from megatron_music.recipe.recipe import Recipe, naming_faults

    with naming_faults(recipe):
        print_plan(make_plan(Recipe.load(recipe, overrides), gpus, gpu, mfu, rank, build), plots, as_json)


@app.command(epilog="Example: megatron-music train examples/quickstart.yaml --processes 2 --set seed=2")
def train(
    recipe: RecipeFile,
    processes: Processes = None,
    branch_from: Annotated[
        Path | None, typer.Option("--from", help="Checkpoint to start from, or to train the adapters of `lora` on.")
    ] = None,
    fresh_optimizer: Annotated[
        bool, typer.Option("--fresh-optimizer", help="Start without the optimizer state of that checkpoint.")
    ] = False,
    restarts: Annotated[
        int, typer.Option(min=0, help="How often to start again, without progress between, where a process is lost.")
    ] = 3,
    until: Annotated[str | None, typer.Option(help="Phase to end with.", show_default="the last")] = None,
    overrides: Overrides = None,
) -> None:
    """Train a recipe; run again, it goes on from its last complete checkpoint.

    SIGTERM, SIGUSR1 or Ctrl-C end it with a checkpoint and status 75. All exit codes: docs/cluster.md.
    """
    from megatron_music.recipe.recipe import Recipe, naming_faults
    from megatron_music.training.run import train as train_recipe

    with naming_faults(recipe):
        train_recipe(Recipe.load(recipe, overrides), processes, branch_from, fresh_optimizer, restarts, until)


@app.command(epilog="Example: megatron-music preflight runs/yue_7b --processes 8, or under srun, one task a node")
def preflight(
    folder: Annotated[Path, typer.Argument(help="Run folder: where the run will write.")],
    processes: NodeProcesses = None,
) -> None:
    """Test the GPUs, links and file system of this job; name what is not fit, with status 3."""
    from megatron_music.cluster.preflight import preflight as run_preflight

    run_preflight(folder, processes)


@app.command(epilog="Example: megatron-music submit examples/yue_7b.yaml --nodes 64 --time 2-00:00:00 --dry-run")
def submit(
    recipe: RecipeFile,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")],
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each node.")] = 8,
    processes: NodeProcesses = None,
    phases: Annotated[str, typer.Option(help="one: all in one job; chain: a job for each, one after another.")] = "one",
    restarts: Annotated[int, typer.Option(min=0, help="As of `train`, in the job.")] = 3,
    grace_seconds: Annotated[int, typer.Option(min=1, help="For the last checkpoint, before the time limit.")] = 300,
    time: TimeLimit = None,
    partition: Partition = None,
    account: Account = None,
    environment: Environment = None,
    container: Annotated[str | None, typer.Option(help="Image to run in (pyxis); see slurm/Dockerfile.")] = None,
    mount: Annotated[list[Path] | None, typer.Option(help="Another folder that the container sees.")] = None,
    sbatch: Sbatch = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file; write and submit nothing.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train a recipe on SLURM: one job, requeued until the recipe is done. docs/cluster.md tells more."""
    from megatron_music.cluster.submit import Job, parse_options
    from megatron_music.cluster.submit import submit as submit_recipe
    from megatron_music.recipe.recipe import Recipe, naming_faults

    options = parse_options(sbatch or [], time=time, partition=partition, account=account)
    job = Job(nodes, gpus_per_node, processes, options, environment, container, mount or [], restarts, grace_seconds)
    with naming_faults(recipe):
        typer.echo(submit_recipe(Recipe.load(recipe, overrides), job, phases, dry_run))


@app.command(epilog="Example: megatron-music status runs/yue_7b --live")
def status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or a folder of them.")],
    live: Annotated[bool, typer.Option("--live", help="Draw again until the runs end, or Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between drawings.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Where runs stand: phase, tokens and time left, losses, speed, data, last checkpoint, troubles."""
    from megatron_music.cluster.status import show

    show(runs, live, as_json, every)

"""`predict`: what small runs tell about a large one."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_music.cli.app import AsJson, Device, GpuKind, Mfu, Overrides, Positions, Processes, RecipeFile, Seed, app

predict = typer.Typer(
    help="Know at 0.5B whether 7B is worth its GPUs.",
    no_args_is_help=True,
    epilog="Example: megatron-music predict gate runs/yue_0.5b",
)
app.add_typer(predict, name="predict")


@predict.command(epilog="Example: megatron-music predict gate runs/yue_0.5b --check")
def gate(
    run: Annotated[Path, typer.Argument(help="Run folder; the run may be training.")],
    thresholds: Annotated[Path | None, typer.Option(help="File of limits.", show_default="the shipped one")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Tokens to judge it at, as 70B.", show_default="by its parameters")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Where its corpus lies.", show_default="the recipe's")] = None,
    train: Annotated[
        str | None, typer.Option(help="Source that the bigram is fitted on.", show_default="found")
    ] = None,
    held_out: Annotated[str | None, typer.Option(help="Source of held-out songs.", show_default="found")] = None,
    reference: Annotated[str | None, typer.Option(help="Source of ICL documents.", show_default="found")] = None,
    positions: Positions = 4000,
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents that are scored.")] = 32,
    codec_weights: Annotated[
        str | None, typer.Option(help="The codec's weights: tell which codes are silence.", show_default="the corpus'")
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well.")] = None,
    check: Annotated[bool, typer.Option("--check", help="End with status 4 for no-go and 5 for not yet.")] = False,
) -> None:
    """Say go, no-go or not yet to a predictor run, with the reasons; necessary, not sufficient.

    Reads the run folder, also while it trains, and writes nothing into it. Without --check every verdict is status 0.
    """
    from megatron_music.evaluation.model import Effort
    from megatron_music.scaling.gate import gate as judge
    from megatron_music.scaling.thresholds import Thresholds, budget_tokens
    from megatron_music.scaling.verdict import EXITS, show

    effort = Effort(positions, documents, codec_weights=codec_weights, device=device, seed=seed)
    report = judge(
        run, Thresholds.load(thresholds), effort, budget_tokens=budget_tokens(budget), corpus=corpus, train=train,
        held_out=held_out, reference=reference,
    )  # fmt: skip
    show(report, as_json, out)
    if check:
        raise typer.Exit(EXITS[report.verdict])


@predict.command(epilog="Example: megatron-music predict fit ladder --target 7B@1.75T --out fit")
def fit(
    points: Annotated[
        list[Path], typer.Argument(help="Run folders, folders of runs, ladders, or tables (.csv) of points.")
    ],
    target: Annotated[
        list[str] | None, typer.Option(help="PARAMETERS@TOKENS such as 7B@1.75T, or a recipe; several times.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for fit.html, fit.json and pictures.", show_default="print alone")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Loss to fit: loss (all tokens), vocal, ...; several times.")
    ] = None,
    count: Annotated[
        str, typer.Option(help="Parameters of runs: layers (no embeddings), multiplying (no input embedding) or all.")
    ] = "layers",
    loss: Annotated[str, typer.Option(help="held_out, training, or auto: held out where every run has it.")] = "auto",
    phase_ends: Annotated[
        bool, typer.Option("--phase-ends", help="Also the ends of phases whose learning rate had decayed.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Take runs that have not ended as they are.")
    ] = False,
    parameters_column: Annotated[
        str | None, typer.Option(help="Of a table.", show_default="parameters, N, ...")
    ] = None,
    tokens_column: Annotated[str | None, typer.Option(help="Of a table.", show_default="tokens, D, ...")] = None,
    flops_column: Annotated[
        str | None, typer.Option(help="Of a table without tokens.", show_default="FLOPs, C")
    ] = None,
    loss_column: Annotated[
        list[str] | None, typer.Option(help="Of a table; several times.", show_default="those that begin with loss")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 500,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit loss over parameters and tokens to small runs; say what a larger one will come to, and how surely."""
    from megatron_music.scaling.counts import check_counted
    from megatron_music.scaling.fit import parse_target
    from megatron_music.scaling.fit import predict as predict_losses
    from megatron_music.scaling.fit_output import show
    from megatron_music.scaling.point import Options
    from megatron_music.scaling.points import read_points

    named = {"parameters": parameters_column, "tokens": tokens_column, "flops": flops_column}
    columns = {quantity: name for quantity, name in named.items() if name is not None}
    options = Options(check_counted(count), phase_ends, unfinished, loss, columns, loss_column or [])
    targets = [parse_target(text, options.counted) for text in target or []]
    found = predict_losses(read_points(points, options), targets, kind or [], options.counted, resamples, seed)
    show(found, out, as_json)


@predict.command(epilog="Example: megatron-music predict ladder examples/yue_0.5b.yaml ladder --gpus 16")
def ladder(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Argument(help="Folder for the recipes, ladder.json and submit.sh.")],
    sizes: Annotated[
        str, typer.Option(help="Parameters of the layers, without embeddings.")
    ] = "20M,50M,120M,250M,500M",
    tokens_per_parameter: Annotated[
        str, typer.Option(help="Ratios; each size is run at each, to tell tokens and parameters apart.")
    ] = "20,60,180",
    learning_rate_exponent: Annotated[float, typer.Option(help="Learning rate over FLOPs to this power.")] = -0.125,
    batch_exponent: Annotated[float, typer.Option(help="Batch tokens over FLOPs to this power.")] = 0.3271,
    gpus: Annotated[int, typer.Option(min=1, help="The most GPUs of a run.")] = 8,
    gpu: GpuKind = "H800",
    mfu: Mfu = 0.4,
    overrides: Overrides = None,
) -> None:
    """Write the recipes of a ladder of small runs, and print what they take; starts and submits nothing.

    Then: train each (`megatron-music train OUT/20M_20x.yaml`), or submit all with `sh OUT/submit.sh`.
    """
    from megatron_music.scaling.ladder import ladder_table, write_ladder
    from megatron_music.scaling.rungs import Rule

    rule = Rule(learning_rate_exponent, batch_exponent)
    rungs = write_ladder(recipe, out, sizes, tokens_per_parameter, rule, gpus, gpu, mfu, overrides or [])
    typer.echo(f"{ladder_table(rungs, gpu)}\n\nwritten to {out}; to submit all of them: sh {out / 'submit.sh'}")


@predict.command(epilog="Example: megatron-music predict compare ladder runs/other, or: predict compare codecs.yaml")
def compare(
    paths: Annotated[list[Path], typer.Argument(help="Ladders and runs; or one file that names codecs and songs.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for a page, pictures and JSON.", show_default="of codecs: beside it")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Put runs side by side, finished or not; or codecs, by what they keep of songs and what models make of it."""
    from megatron_music.scaling.compare import compare as side_by_side

    typer.echo(side_by_side(paths, out, device, as_json))


@predict.command(
    epilog="Example: megatron-music predict ablate examples/ablations/icl.yaml --out runs/ablations --seeds 1"
)
def ablate(
    files: Annotated[list[Path], typer.Argument(help="Ablation files.")],
    out: Annotated[Path, typer.Option(help="Folder for runs and answers.")],
    seeds: Annotated[str | None, typer.Option(help="Such as 1,2.", show_default="the files' own")] = None,
    positions: Positions = 500,
    processes: Processes = None,
    overrides: Overrides = None,
) -> None:
    """Train and measure both sides of each ablation, as far as that is not done, and print the answers."""
    from megatron_music.scaling.ablation_result import result_table
    from megatron_music.scaling.ablations import read_seeds, run_ablations

    results = run_ablations(files, out, read_seeds(seeds), overrides or (), processes, positions)
    typer.echo("\n\n".join(result_table(result) for result in results.values()))

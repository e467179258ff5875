"""`evaluate`: measures of models and of songs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_music.cli.app import Device, Positions, Seed, app

evaluate = typer.Typer(
    help="Measure what can be measured: models and songs.",
    no_args_is_help=True,
    epilog="Example: megatron-music evaluate model hf corpus/lyrics_to_song corpus/lyrics_to_song_held_out",
)
app.add_typer(evaluate, name="evaluate")


@evaluate.command(
    epilog="Example: megatron-music evaluate model hf corpus/lyrics_to_song corpus/lyrics_to_song_held_out"
)
def model(
    folder: Annotated[Path, typer.Argument(help="Exported stage-1 model.")],
    train: Annotated[Path, typer.Argument(help="Source that it was trained on; the bigram is fitted on it.")],
    held_out: Annotated[Path, typer.Argument(help="Source of held-out songs.")],
    positions: Positions = 2000,
    seed: Seed = 0,
    reference: Annotated[
        Path | None, typer.Option(help="Source of ICL documents: is the reference copied?", show_default="none")
    ] = None,
    trained_on: Annotated[
        list[Path] | None, typer.Option(help="Another source that it was trained on, to look for copies.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Index of the training sources, built if missing.", show_default="TRAIN.copies")
    ] = None,
    songs: Annotated[list[Path] | None, typer.Option(help="Songs of `generate`: what do they copy?")] = None,
    probes: Annotated[
        Path | None, typer.Option(help="CSV or JSON lines of labelled clips: what do the layers know?")
    ] = None,
    codec_weights: Annotated[str | None, typer.Option(help="The codec's weights.", show_default="the model's")] = None,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", show_default="print")] = None,
) -> None:
    """Measure a model: losses, validity, variety and copies in free samples, and what its layers know of clips."""
    from megatron_music.evaluation.model_evaluation import ModelRequest, model_evaluation, summary

    request = ModelRequest(
        train, held_out, trained_on or (), reference, index, songs or (), probes, codec_weights, device, positions, seed
    )
    found = model_evaluation(folder, request)
    if out is None:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2))
    else:
        found.write(out)
        typer.echo(f"{summary(found)}\nwritten: {out}")


@evaluate.command(epilog="Example: megatron-music evaluate songs runs/a/songs runs/b/songs --out evaluation")
def songs(
    folders: Annotated[list[Path], typer.Argument(help="Folders of songs or of f0 files, one a system.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    plain: Annotated[str, typer.Option(help="What audio files hold whose names tell no track: mix or vocals.")] = "mix",
    recogniser: Annotated[
        str | None, typer.Option(help="Speech recogniser: folder of a Whisper for CTranslate2, .nemo file, hub name.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Of the lyrics, such as en.", show_default="each song's")] = None,
    embedding: Annotated[
        str | None, typer.Option(help="Embedding model of transformers, such as CLAP: folder or hub name.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Audio classifier of transformers for the KL divergence: folder or hub name.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Folder of songs to compare sets with.")] = None,
    rmvpe: Annotated[
        Path | None, typer.Option(help="RMVPE's weights (rmvpe.pt), to hear f0 of vocals.", show_default="pyin hears")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="CSV of scores that other programs gave.")] = None,
    device: Device = "cpu",
    processes: Annotated[int | None, typer.Option(min=1, help="Songs at once.", show_default="all cores")] = None,
) -> None:
    """Measure songs of one system or several: vocal range, structure, levels, lyrics, distances; JSON and a page."""
    from megatron_music.evaluation.songs.evaluate import Options, evaluate_songs, refuse_unreadable, summary
    from megatron_music.evaluation.songs.networks import Named

    named = Named(recogniser, language, embedding, classifier, reference, device, rmvpe)
    evaluation = evaluate_songs(folders, out, Options(plain, named, scores, processes))
    typer.echo(summary(evaluation))
    refuse_unreadable(evaluation)


@evaluate.command(epilog="Example: megatron-music evaluate report songs/evaluation.json listening --out report")
def report(
    evaluations: Annotated[list[Path], typer.Argument(help="Files that `evaluate` wrote, or folders with one.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    players: Annotated[int, typer.Option(min=0, help="Songs of each system to hear, at most.")] = 20,
) -> None:
    """Write one page of evaluations: plots, songs to hear, the table as CSV and LaTeX; systems side by side."""
    from megatron_music.evaluation.report.write import report_files

    typer.echo(report_files(evaluations, out, players))


@evaluate.command(epilog="Example: megatron-music evaluate listen songs/ours songs/theirs --out listening")
def listen(
    systems: Annotated[list[Path] | None, typer.Argument(help="A folder of songs of each system.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the test: clips and answers.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of a test: say what was answered so far.")] = None,
    rater: Annotated[str | None, typer.Option(help="Who listens.", show_default="the page asks")] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs for each rater, at most.", show_default="all")] = None,
    loudness: Annotated[bool, typer.Option(help="Bring all songs to one loudness.")] = True,
    seed: Seed = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7861,
) -> None:
    """Compare songs of several systems blind, in a web page; started again, it goes on.

    With --results it writes FOLDER/evaluation.json, which `evaluate report` reads, and prints win rates.
    """
    from megatron_music.errors import InputError
    from megatron_music.evaluation.listening.results import results_in_words, write_results
    from megatron_music.evaluation.listening.server import listen as serve

    if (out is None) == (results is None):
        raise InputError("evaluate listen", "needs --out or --results", "name the folder of the test with one of them")
    if results is not None:
        typer.echo(results_in_words(write_results(results)))
        return
    serve(out, systems or [], rater, pairs, seed=seed, match_loudness=loudness, host=host, port=port, say=typer.echo)

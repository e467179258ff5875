"""Verbs from songs to a corpus, and from a corpus back to songs."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_music.cli.app import (
    Account,
    Environment,
    LyricsTranslation,
    MaxRejected,
    Partition,
    Processes,
    Sbatch,
    Seed,
    TimeLimit,
    app,
)

CorpusWeights = Annotated[str | None, typer.Option(help="The codec's weights.", show_default="the corpus' own")]


@app.command(epilog="Example: megatron-music songbook runs/quickstart/songs --takes 6")
def songbook(
    out: Annotated[Path, typer.Argument(help="Folder for stems and manifest.")],
    source: Annotated[Path, typer.Option(help="Folder of .abc files.")] = Path("examples/songbook"),
    takes: Annotated[int, typer.Option(min=1, help="Renderings of every song: key, tempo, voice, band.")] = 1,
    seed: Seed = 0,
    processes: Processes = None,
) -> None:
    """Render the public-domain songs to vocals, accompaniment, mix and a manifest."""
    from megatron_music.songs.songbook import render_songbook

    typer.echo(render_songbook(source, out, takes=takes, seed=seed, processes=processes))


@app.command(epilog="Example: megatron-music manifest recordings songs --source home --licence CC0")
def manifest(
    folder: Annotated[Path, typer.Argument(help="Folder of recordings, with folders below it.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.jsonl, rejects.parquet and remarks.txt.")],
    speech: Annotated[bool, typer.Option("--speech", help="Clips of speech: a .txt holds what is said.")] = False,
    language: Annotated[str | None, typer.Option(help="ISO 639-1 code where a song names none.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the songs come from, where they don't say.")] = None,
    licence: Annotated[str | None, typer.Option(help="Their licence, where they don't say.")] = None,
    translation: LyricsTranslation = "first",
    max_rejected: MaxRejected = 1.0,
) -> None:
    r"""Make a manifest of a folder: recordings with their stems, lyrics and tags, paired by name.

    A song is song.mp3 (or wav, flac, ogg, opus, aiff, m4a, ...) or song/mix.mp3.

    Stems: song.vocals.wav and song.instrumental.wav, or song/vocals.wav and song/no_vocals.wav.

    Lyrics: song.lrc with times, or song.txt with labels such as \[verse]; or song/lyrics.txt. What is not sung
    (credits, header tags, repeat marks, ...) is left out, and OUT/remarks.txt names it.

    Tags and more: song.tags.txt; song.json with fields of a manifest (tags, language, id, msa) and any others.
    """
    from megatron_music.songs.folder import manifest_of_folder

    summary = manifest_of_folder(folder, out, speech, language, source, licence, translation)
    summary.tell(out, max_rejected, typer.echo)


@app.command(epilog="Example: megatron-music tokenizer songs/manifest.jsonl tokenizer.model --size 1024")
def tokenizer(
    manifest: Annotated[Path, typer.Argument(help="Manifest whose lyrics and tags are learned from.")],
    out: Annotated[Path, typer.Argument(help="SentencePiece model to write.")],
    size: Annotated[int, typer.Option(min=300, help="Pieces; the vocabulary file's text.size.")] = 1024,
) -> None:
    """Train a SentencePiece text model on the lyrics and tags of a manifest."""
    from megatron_music.documents.texts import texts_of_manifest
    from megatron_music.vocabulary.text import train_text_tokenizer

    typer.echo(train_text_tokenizer(texts_of_manifest(manifest), out, size))


@app.command(epilog="Example: megatron-music encode songs/manifest.jsonl codes --codec xcodec --weights FOLDER")
def encode(
    manifest: Annotated[Path, typer.Argument(help="Manifest with audio paths.")],
    out: Annotated[Path, typer.Argument(help="Folder for code shards and the new manifest.")],
    codec: Annotated[str, typer.Option(help="xcodec, encodec, dac, or embedded (fitted here).")] = "embedded",
    weights: Annotated[str | None, typer.Option(help="Folder, checkpoint file or hub name of the codec.")] = None,
    codebooks: Annotated[int, typer.Option(min=1, max=8, help="Codebooks of the embedded codec.")] = 8,
    codebook_size: Annotated[int, typer.Option(min=2, max=1024, help="Codes of each of them.")] = 1024,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda with --gpus")] = None,
    annotate: Annotated[
        list[str] | None,
        typer.Option(help="Annotator that hears every song first, such as separate; may be given several times."),
    ] = None,
    annotator_option: Annotated[
        list[str] | None, typer.Option(metavar="ANNOTATOR.NAME=VALUE", help="For example separate.weights=FILE.")
    ] = None,
    window_seconds: Annotated[
        float | None,
        typer.Option(help="Cut tracks into windows, for GPU batches of many songs.", show_default="whole tracks"),
    ] = None,
    batch_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Audio encoded at once.", show_default="600 on a GPU, else track by track"),
    ] = None,
    shard_songs: Annotated[int, typer.Option(min=1, help="Songs a shard, which is whole or absent.")] = 64,
    executor: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    tasks: Annotated[int | None, typer.Option(min=1, help="Parts of the work.", show_default="chosen")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Tasks at a time.", show_default="chosen")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs a task, on SLURM and Ray.")] = 0,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores a task, on SLURM and Ray.")] = 1,
    memory_gb: Annotated[float | None, typer.Option(help="Memory a task.", show_default="the cluster's")] = None,
    time: TimeLimit = None,
    partition: Partition = None,
    qos: Annotated[str | None, typer.Option(help="SLURM quality of service.")] = None,
    account: Account = None,
    environment: Environment = None,
    sbatch: Sbatch = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the SLURM jobs have ended.")] = False,
    max_rejected: MaxRejected = 1.0,
) -> None:
    """Turn audio into codec codes, in Parquet shards; run again, it goes on where it was stopped."""
    from megatron_music.corpus.encode import encode_manifest, parse_annotator_options
    from megatron_music.corpus.executors import Machines, parse_sbatch_options

    machines = Machines(
        executor=executor,
        tasks=tasks,
        workers=workers,
        gpus=gpus,
        cpus=cpus,
        memory_gb=memory_gb,
        time=time,
        partition=partition,
        qos=qos,
        account=account,
        environment=environment,
        sbatch=parse_sbatch_options(sbatch or []),
        wait=wait,
    )
    encoded = encode_manifest(
        manifest,
        out,
        codec,
        weights=weights,
        codebooks=codebooks,
        codebook_size=codebook_size,
        device=device,
        annotators=annotate or [],
        annotator_options=parse_annotator_options(annotator_option or []),
        window_seconds=window_seconds,
        batch_seconds=batch_seconds,
        shard_songs=shard_songs,
        machines=machines,
        most_rejected=max_rejected,
    )
    if encoded is not None:
        encoded.tell(max_rejected, typer.echo)


@app.command(
    epilog="Example: megatron-music build examples/quickstart_corpus.yaml runs/corpus. All fields of a spec: "
    "docs/corpus.md, or `python -m pydoc megatron_music.corpus.spec`, megatron_music.songs.filters and "
    "megatron_music.corpus.duplicates."
)
def build(
    spec: Annotated[
        Path,
        typer.Argument(
            help="Build spec (YAML): vocabulary, tokenizer, sources with their tasks and filters, held_out, "
            "held_out_share, near_duplicates."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Corpus folder.")],
    processes: Processes = None,
    max_rejected: MaxRejected = 1.0,
) -> None:
    """Make token documents of every source and write them as an indexed corpus.

    --max-rejected looks at every source by itself; songs that filters leave out count as rejected.
    """
    from megatron_music.corpus.build import build_corpus, refuse_too_many_rejects
    from megatron_music.corpus.inspect import corpus_table

    sources = build_corpus(spec, out, processes=processes)
    typer.echo(corpus_table(out))
    refuse_too_many_rejects(sources, out, max_rejected)


@app.command(epilog="Example: megatron-music rejects runs/corpus --rule few_lyrics")
def rejects(
    path: Annotated[Path, typer.Argument(help="What `manifest`, `encode` or `build` wrote: the folder, or its table.")],
    rule: Annotated[str | None, typer.Option(help="Only those of this rule.", show_default="all")] = None,
) -> None:
    """Print what was left out and why, one a line: rule, id, reason and where it stands, between tabs."""
    from megatron_music.songs.rejects import reject_lines

    for line in reject_lines(path, rule):
        typer.echo(line)


@app.command(epilog="Example: megatron-music inspect runs/corpus/lyrics_to_song --document 3 --listen heard")
def inspect(
    prefix: Annotated[Path, typer.Argument(help="Source: CORPUS/NAME, or a corpus folder for a table of it.")],
    document: Annotated[int, typer.Option(min=0, help="Number of the document.")] = 0,
    listen: Annotated[Path | None, typer.Option(help="Folder for the document's audio.", show_default="none")] = None,
    weights: CorpusWeights = None,
) -> None:
    """Print a document of a corpus in words, or the table of a corpus; decode a document to audio."""
    from megatron_music.corpus.inspect import corpus_table, inspect_source

    typer.echo(corpus_table(prefix) if prefix.is_dir() else inspect_source(prefix, document))
    if listen is not None:
        from megatron_music.corpus.listen import write_document_audio

        for path in write_document_audio(prefix, document, listen, weights):
            typer.echo(path)


@app.command(epilog="Example: megatron-music trace song-0417 runs/yue_7b")
def trace(
    song: Annotated[str, typer.Argument(help="The song's id in its manifest.")],
    run: Annotated[Path, typer.Argument(help="Run folder, or a recipe for a run that has not begun.")],
) -> None:
    """Print when a run has seen, or will see, a song: phase, step, sample, and the tokens of it in there."""
    from megatron_music.training.trace import trace_text

    typer.echo(trace_text(song, run))


@app.command(epilog="Example: megatron-music report runs/corpus --out report.html --documents 50")
def report(
    corpus: Annotated[Path, typer.Argument(help="Corpus folder.")],
    out: Annotated[Path | None, typer.Option(help="HTML file.", show_default="CORPUS/report.html")] = None,
    documents: Annotated[int, typer.Option(min=0, help="Documents to show, spread over the sources.")] = 20,
    seed: Seed = 0,
    weights: CorpusWeights = None,
    audio: Annotated[bool, typer.Option(help="Decode the documents' audio.")] = True,
) -> None:
    """Write an HTML page about a corpus: its numbers, its rejects, and documents to read and to listen to."""
    from megatron_music.corpus.report import write_report

    typer.echo(write_report(corpus, out, documents, seed, weights, audio))

"""The command line: one command a verb, no logic."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_music.errors import InputError
from megatron_music.exits import ExitCode, RunEnded

app = typer.Typer(
    name="megatron-music",
    help="Pretrain music language models on megatron-core: from songs to codec tokens to a model that sings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Verify = Annotated[bool, typer.Option("--verify", help="Compare every weight, and the logits of both sides.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes on this machine.", show_default="chosen")]

Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: a.b=c. May be given several times.")
]

# What `generate` and `demo` sing with.
SingingCodec = Annotated[str | None, typer.Option(help="Codec.", show_default="the vocabulary's")]
SingingWeights = Annotated[str | None, typer.Option(help="The codec's weights.", show_default="the models' own")]
SingingVocabulary = Annotated[Path | None, typer.Option(help="Vocabulary file.", show_default="the models' own")]
SingingTokenizer = Annotated[Path | None, typer.Option(help="SentencePiece model.", show_default="the models'")]
Vocoder = Annotated[Path | None, typer.Option(help="Folder of YuE's 44.1 kHz vocoders.", show_default="none")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="a GPU where there is one")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the verb; ``main`` reads ``--debug`` itself."""


@app.command(epilog="Example: megatron-music songbook runs/quickstart/songs --takes 6")
def songbook(
    out: Annotated[Path, typer.Argument(help="Folder for stems and manifest.")],
    source: Annotated[Path, typer.Option(help="Folder of .abc files.")] = Path("examples/songbook"),
    takes: Annotated[int, typer.Option(min=1, help="Renderings of every song: key, tempo, voice, band.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the takes.")] = 0,
    processes: Processes = None,
) -> None:
    """Render the public-domain songs to vocals, accompaniment, mix and a manifest."""
    from megatron_music.songs.songbook import render_songbook

    render_songbook(source, out, takes=takes, seed=seed, processes=processes)


@app.command(epilog="Example: megatron-music manifest recordings songs --source home --licence CC0")
def manifest(
    folder: Annotated[Path, typer.Argument(help="Folder of recordings, with folders below it.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.jsonl and rejects.parquet.")],
    speech: Annotated[bool, typer.Option("--speech", help="Clips of speech: a .txt holds what is said.")] = False,
    language: Annotated[str | None, typer.Option(help="ISO 639-1 code where a song names none.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the songs come from, where they don't say.")] = None,
    licence: Annotated[str | None, typer.Option(help="Their licence, where they don't say.")] = None,
) -> None:
    r"""Make a manifest of a folder: recordings with their stems, lyrics and tags, paired by name.

    A song is song.mp3 (or wav, flac, ogg, opus, aiff) or song/mix.mp3.

    Stems: song.vocals.wav and song.instrumental.wav, or song/vocals.wav and song/no_vocals.wav.

    Lyrics: song.lrc with times, or song.txt with labels such as \[verse] on lines of their own; or song/lyrics.txt.

    Tags and more: song.tags.txt; song.json with fields of a manifest (tags, language, id, msa) and any others.
    """
    from megatron_music.songs.folder import manifest_of_folder

    typer.echo(manifest_of_folder(folder, out, speech, language, source, licence))


@app.command(epilog="Example: megatron-music tokenizer songs/manifest.jsonl tokenizer.model --size 1024")
def tokenizer(
    manifest: Annotated[Path, typer.Argument(help="Manifest whose lyrics and tags are learned from.")],
    out: Annotated[Path, typer.Argument(help="SentencePiece model to write.")],
    size: Annotated[int, typer.Option(min=300, help="Pieces; the vocabulary file's text.size.")] = 1024,
) -> None:
    """Train a SentencePiece text model on the lyrics and tags of a manifest."""
    from megatron_music.documents.texts import texts_of_manifest
    from megatron_music.vocabulary.text import train_text_tokenizer

    train_text_tokenizer(texts_of_manifest(manifest), out, size)


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
    time: Annotated[str | None, typer.Option(help="SLURM time limit.", show_default="the partition's")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.", show_default="the cluster's")] = None,
    qos: Annotated[str | None, typer.Option(help="SLURM quality of service.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    environment: Annotated[
        str | None,
        typer.Option(help="Shell command that sets up `python` in SLURM jobs.", show_default="this very Python"),
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other option of sbatch, such as exclude=node7.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the SLURM jobs have ended.")] = False,
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
    encode_manifest(
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
    )


@app.command(
    epilog="Example: megatron-music build examples/corpus.yaml runs/corpus. All fields of a spec: docs/corpus.md, or "
    "`python -m pydoc megatron_music.corpus.spec`, megatron_music.songs.filters and megatron_music.corpus.duplicates."
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
) -> None:
    """Make token documents of every source and write them as an indexed corpus."""
    from megatron_music.corpus.build import build_corpus
    from megatron_music.corpus.inspect import corpus_table

    build_corpus(spec, out, processes=processes)
    typer.echo(corpus_table(out))


@app.command(epilog="Example: megatron-music inspect runs/corpus/lyrics_to_song --document 3 --listen heard")
def inspect(
    prefix: Annotated[Path, typer.Argument(help="Source: CORPUS/NAME, or a corpus folder for a table of it.")],
    document: Annotated[int, typer.Option(min=0, help="Number of the document.")] = 0,
    listen: Annotated[Path | None, typer.Option(help="Folder for the document's audio.", show_default="none")] = None,
    weights: Annotated[str | None, typer.Option(help="The codec's weights.", show_default="the corpus' own")] = None,
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    weights: Annotated[str | None, typer.Option(help="The codec's weights.", show_default="the corpus' own")] = None,
    audio: Annotated[bool, typer.Option(help="Decode the documents' audio.")] = True,
) -> None:
    """Write an HTML page about a corpus: its numbers, its rejects, and documents to read and to listen to."""
    from megatron_music.corpus.report import write_report

    typer.echo(write_report(corpus, out, documents, seed, weights, audio))


@app.command(epilog="Example: megatron-music plan examples/yue_7b.yaml --gpus 512 --gpu H800 --plots plots")
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs: plan layout, memory, time and checkpoints too.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Their kind: A100, H100, H200 or H800.")] = "H800",
    mfu: Annotated[float, typer.Option(help="Share of the BF16 peak that is expected of them.")] = 0.4,
    rank: Annotated[
        list[int] | None, typer.Option(help="Process to look at; several times.", show_default="one of every stage")
    ] = None,
    build: Annotated[bool, typer.Option(help="Build groups and network of these ranks, without memory.")] = True,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures of learning rate and mixture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
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
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
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
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on each node.", show_default="one for each GPU")
    ] = None,
) -> None:
    """Test the GPUs, links and file system of this job; name what is not fit, with status 3."""
    from megatron_music.cluster.preflight import preflight as run_preflight

    run_preflight(folder, processes)


@app.command(epilog="Example: megatron-music submit examples/yue_7b.yaml --nodes 64 --time 2-00:00:00 --dry-run")
def submit(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")],
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each node.")] = 8,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on each node.", show_default="one for each GPU")
    ] = None,
    phases: Annotated[str, typer.Option(help="one: all in one job; chain: a job for each, one after another.")] = "one",
    restarts: Annotated[int, typer.Option(min=0, help="As of `train`, in the job.")] = 3,
    grace_seconds: Annotated[int, typer.Option(min=1, help="For the last checkpoint, before the time limit.")] = 300,
    time: Annotated[str | None, typer.Option(help="Time limit of a job.", show_default="the partition's")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.", show_default="the cluster's")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    environment: Annotated[
        str | None, typer.Option(help="Shell command that sets up `python` in the job.", show_default="this Python")
    ] = None,
    container: Annotated[str | None, typer.Option(help="Image to run in (pyxis); see slurm/Dockerfile.")] = None,
    mount: Annotated[list[Path] | None, typer.Option(help="Another folder that the container sees.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other option of sbatch, such as qos=long.")
    ] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Where runs stand: phase, tokens and time left, losses, speed, data, last checkpoint, troubles."""
    from megatron_music.cluster.status import show

    show(runs, live, as_json, every)


@app.command(epilog="Example: megatron-music export runs/x/checkpoints/step_000100 runs/x/hf --dtype float32")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or a run for its latest one.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="huggingface; or megatron: the weights alone, for `train --from`.")
    ] = "huggingface",
    dtype: Annotated[str, typer.Option(help="bfloat16, or float32 for the optimizer's master weights.")] = "bfloat16",
    corpus: Annotated[Path | None, typer.Option(help="Corpus folder.", show_default="the recipe's")] = None,
    adapters: Annotated[
        str, typer.Option(help="Adapters: merged into the network below them, or a peft folder of their own.")
    ] = "merged",
    base: Annotated[
        Path | None, typer.Option(help="Where the network below adapters lies now.", show_default="where it was")
    ] = None,
    verify: Verify = False,
) -> None:
    """Write a checkpoint as a Hugging Face Llama folder, its adapters as one for peft, or its weights alone."""
    from megatron_music.conversion.export import export_checkpoint

    options = {"dtype": dtype, "corpus": corpus, "adapters": adapters, "base": base, "form": form}
    verified = export_checkpoint(checkpoint, out, **options, verify=verify)
    if verified:
        typer.echo(verified)


@app.command(
    "import",
    epilog="Example: megatron-music import YuE-s1-7B runs/in --vocabulary tokenizers/yue.yaml "
    "--tokenizer tokenizer.model",
)
def import_(
    folder: Annotated[Path, typer.Argument(help="Hugging Face Llama folder, or Megatron-LM's checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write, for `train --from`.")],
    recipe: Annotated[Path | None, typer.Option(help="Recipe that says the network of Megatron-LM's weights.")] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="Vocabulary file.", show_default="the folder's own")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="SentencePiece model.", show_default="the folder's")] = None,
    verify: Verify = False,
) -> None:
    """Write a network from elsewhere as a checkpoint that training goes on from, on any layout."""
    from megatron_music.conversion.imports import import_network

    verified = import_network(folder, out, recipe, vocabulary, tokenizer, verify)
    if verified:
        typer.echo(verified)


@app.command(
    epilog="Example: megatron-music generate --stage1 hf1 --stage2 hf2 --lyrics lyrics.txt --tags tags.txt song"
)
def generate(
    out: Annotated[Path, typer.Argument(help="Folder for mix, stems and song.json; several songs: OUT/01, ...")],
    stage1: Annotated[Path | None, typer.Option(help="Stage-1 model folder.")] = None,
    stage2: Annotated[Path | None, typer.Option(help="Stage-2 model folder.")] = None,
    lyrics: Annotated[Path | None, typer.Option(help=r"Text file with \[verse], \[chorus], ... sections.")] = None,
    tags: Annotated[Path | None, typer.Option(help="Text file with one line of tags.")] = None,
    repeat: Annotated[Path | None, typer.Option(help="song.json of a song to sing again.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Audio or codes to resemble; given twice: vocals, then accompaniment."),
    ] = None,
    reference_start: Annotated[float, typer.Option(help="Seconds; the reference's part.")] = 0.0,
    reference_end: Annotated[float, typer.Option(help="Seconds.")] = 30.0,
    past: Annotated[
        str | None, typer.Option("--continue", help="song.json or manifest.jsonl#ID to go on with.")
    ] = None,
    after: Annotated[int | None, typer.Option(min=1, help="... behind this section.", show_default="all")] = None,
    instrumental: Annotated[bool, typer.Option("--instrumental", help="The vocals stay silent.")] = False,
    tracks: Annotated[str, typer.Option(help="Without lyrics: dual, or mix for a single track.")] = "dual",
    songs: Annotated[int, typer.Option(min=1, help="Sing so many at once, of seeds that follow.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed sings the same song.")] = 42,
    segments: Annotated[int | None, typer.Option(min=1, help="Sing only so many sections.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="wav, flac or mp3.")] = "wav",
    loudness: Annotated[float | None, typer.Option(help="LUFS of the mix, such as -14.", show_default="as is")] = None,
    codec: SingingCodec = None,
    weights: SingingWeights = None,
    vocoder: Vocoder = None,
    vocabulary: SingingVocabulary = None,
    tokenizer: SingingTokenizer = None,
    known_tags: Annotated[Path | None, typer.Option(help="File of tags; others are hinted at.")] = None,
    device: Device = None,
    backend: Annotated[str | None, typer.Option(help="transformers or vllm.", show_default="transformers")] = None,
    min_tokens: Annotated[int, typer.Option(min=0, help="Fewest new tokens a section.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens a section.")] = 3000,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest id.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many ids; 0 for all.")] = 50,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw among ids of this probability.")] = 0.93,
    repetition_penalty: Annotated[float, typer.Option(min=0.1, help="1 turns it off.")] = 1.1,
    guidance: Annotated[float, typer.Option(min=0.0, help="Guidance of the first section; 1 turns it off.")] = 1.5,
    guidance_after: Annotated[float, typer.Option(min=0.0, help="Guidance of the other sections.")] = 1.2,
) -> None:
    """Sing lyrics, or tags alone, with two models: vocals, accompaniment and mix."""
    from megatron_music.generation.generate import Prompt
    from megatron_music.generation.generate import generate as generate_songs
    from megatron_music.generation.sampling import SamplingSettings
    from megatron_music.generation.song import Models

    models = Models(stage1, stage2, codec, weights, vocoder, vocabulary, tokenizer, device, backend=backend)
    span = (reference_start, reference_end)
    references = tuple(reference or ())
    asked = Prompt(lyrics, tags, repeat, references, span, past, after, segments, instrumental, tracks, seed)
    settings = SamplingSettings(
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        min_new_tokens=min_tokens,
        max_new_tokens=max_tokens,
        guidance_first=guidance,
        guidance_rest=guidance_after,
    )
    form = {"songs": songs, "loudness_lufs": loudness, "file_format": file_format, "known_tags": known_tags}
    generate_songs(out, models, asked, settings, **form, say=lambda line: typer.echo(line, err=True))


@app.command(epilog="Example: megatron-music demo --stage1 hf1 --stage2 hf2 --known-tags top_200_tags.json")
def demo(
    stage1: Annotated[Path | None, typer.Option(help="Stage-1 model folder.")] = None,
    stage2: Annotated[Path | None, typer.Option(help="Stage-2 model folder.")] = None,
    folder: Annotated[Path, typer.Option(help="All that is written lies there: songs and uploads.")] = Path("demo"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    known_tags: Annotated[Path | None, typer.Option(help="File of tags to offer; others are hinted at.")] = None,
    codec: SingingCodec = None,
    weights: SingingWeights = None,
    vocoder: Vocoder = None,
    vocabulary: SingingVocabulary = None,
    tokenizer: SingingTokenizer = None,
    device: Device = None,
) -> None:
    """Serve `generate` as a web page, to this machine alone unless --host says otherwise."""
    from megatron_music.generation.demo.serve import serve
    from megatron_music.generation.song import Models

    models = Models(stage1, stage2, codec, weights, vocoder, vocabulary, tokenizer, device)
    serve(models, folder, host, port, known_tags, say=typer.echo)


@app.command(epilog="Example: megatron-music evaluate model hf corpus/lyrics_to_song corpus/lyrics_to_song_held_out")
def evaluate(
    what: Annotated[str, typer.Argument(help="model")],
    model: Annotated[Path, typer.Argument(help="Exported stage-1 model.")],
    train: Annotated[Path, typer.Argument(help="Source that the bigram is fitted on.")],
    held_out: Annotated[Path, typer.Argument(help="Source of held-out songs.")],
    positions: Annotated[int, typer.Option(min=1, help="Audio positions sampled freely.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", show_default="print")] = None,
) -> None:
    """Measure a model: held-out loss beside a bigram's, and the share of invalid ids in free samples."""
    from megatron_music.evaluation.model import evaluate_model
    from megatron_music.files import write_json

    if what != "model":
        raise InputError("evaluate", f"{what!r} can't be evaluated", "write `evaluate model`")
    measured = evaluate_model(model, train, held_out, positions, seed)
    if out is None:
        typer.echo(json.dumps(measured, indent=2))
    else:
        write_json(out, measured)


def main() -> None:
    """Runs the command line; what ends it with which status stands in ``exits``."""
    try:
        app()
    except InputError as error:
        if "--debug" in sys.argv:
            raise
        if not error.told_by_another:
            typer.echo(f"error: {error}", err=True)
        sys.exit(ExitCode.BAD_INPUT)
    except RunEnded as error:
        typer.echo(error, err=True)
        sys.exit(error.code)
    except OSError as error:
        if "--debug" in sys.argv:
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror or error}; make room or mend it and run again", err=True)
        sys.exit(ExitCode.FAILED)

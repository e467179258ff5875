"""Verbs of what was trained: in and out, singing."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_music.cli.app import LyricsTranslation, app

Verify = Annotated[bool, typer.Option("--verify", help="Compare every weight, and the logits of both sides.")]

# What `generate` and `demo` sing with.
SingingCodec = Annotated[str | None, typer.Option(help="Codec.", show_default="the vocabulary's")]
SingingWeights = Annotated[str | None, typer.Option(help="The codec's weights.", show_default="the models' own")]
SingingVocabulary = Annotated[Path | None, typer.Option(help="Vocabulary file.", show_default="the models' own")]
SingingTokenizer = Annotated[Path | None, typer.Option(help="SentencePiece model.", show_default="the models'")]
Vocoder = Annotated[Path | None, typer.Option(help="Folder of YuE's 44.1 kHz vocoders.", show_default="none")]
SingingDevice = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="a GPU where there is one")]


@app.command(epilog="Example: megatron-music export runs/x/checkpoints/step_000100 runs/x/hf --dtype float32")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or a run for its latest one.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="huggingface; or megatron: the weights alone, for `train --from`.")
    ] = "huggingface",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="bfloat16, or float32 for the optimizer's master weights.",
            show_default="bfloat16; of an import as it came",
        ),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Corpus folder.", show_default="the recipe's")] = None,
    adapters: Annotated[
        str, typer.Option(help="Adapters: merged into the network below them, or a peft folder of their own.")
    ] = "merged",
    base: Annotated[
        Path | None, typer.Option(help="Where the network below adapters lies now.", show_default="where it was")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Rows of embedding and head, from the vocabulary's size to its padded_size.",
            show_default="as they came; padded where they began here",
        ),
    ] = None,
    verify: Verify = False,
) -> None:
    """Write a checkpoint as a Hugging Face Llama folder, its adapters as one for peft, or its weights alone."""
    from megatron_music.conversion.export import export_checkpoint
    from megatron_music.conversion.written import written_in_words

    options = {"dtype": dtype, "corpus": corpus, "adapters": adapters, "base": base, "form": form, "rows": rows}
    verified = export_checkpoint(checkpoint, out, **options, verify=verify)
    typer.echo(written_in_words(out))
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
    from megatron_music.conversion.written import written_in_words

    verified = import_network(folder, out, recipe, vocabulary, tokenizer, verify)
    typer.echo(written_in_words(out))
    if verified:
        typer.echo(verified)


@app.command(
    epilog="Example: megatron-music generate --stage1 hf1 --stage2 hf2 --lyrics lyrics.txt --tags tags.txt song"
)
def generate(
    out: Annotated[Path, typer.Argument(help="Folder for mix, stems and song.json; several songs: OUT/01, ...")],
    stage1: Annotated[Path | None, typer.Option(help="Stage-1 model folder.")] = None,
    stage2: Annotated[Path | None, typer.Option(help="Stage-2 model folder.")] = None,
    lyrics: Annotated[
        Path | None,
        typer.Option(help=r"Text file with \[verse], \[chorus], ... sections, or LRC; read as by manifest."),
    ] = None,
    translation: LyricsTranslation = "first",
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
    device: SingingDevice = None,
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
    from megatron_music.generation.generate import Prompt, song_in_words
    from megatron_music.generation.generate import generate as generate_songs
    from megatron_music.generation.sampling import SamplingSettings
    from megatron_music.generation.song import Models
    from megatron_music.progress import console

    models = Models(stage1, stage2, codec, weights, vocoder, vocabulary, tokenizer, device, backend=backend)
    span = (reference_start, reference_end)
    references = tuple(reference or ())
    asked = Prompt(
        lyrics, tags, repeat, references, span, past, after, segments, instrumental, tracks, seed, translation
    )
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
    for folder in generate_songs(out, models, asked, settings, **form, say=console.print):
        typer.echo(song_in_words(folder))


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
    device: SingingDevice = None,
) -> None:
    """Serve `generate` as a web page, to this machine alone unless --host says otherwise."""
    from megatron_music.generation.demo.serve import serve
    from megatron_music.generation.song import Models

    models = Models(stage1, stage2, codec, weights, vocoder, vocabulary, tokenizer, device)
    serve(models, folder, host, port, known_tags, say=typer.echo)

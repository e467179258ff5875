"""The model card of an exported folder: what the network is, what it read, and what it had learnt by then."""

import json
from pathlib import Path
from typing import Any

import yaml

from megatron_music.files import read_text
from megatron_music.recipe.flops import parameter_count
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.origin import Origin, read_origin
from megatron_music.training.run_folder import CheckpointState, RunFolder

TASKS_IN_WORDS = {
    "lyrics_to_song": "lyrics and tags to vocals and accompaniment, segment by segment",
    "reference": "the same behind a reference excerpt",
    "unconditional": "music from tags alone",
    "residual": "codebook 0 of a track to all of its codebooks",
}


def model_card(
    recipe: Recipe,
    state: CheckpointState,
    checkpoint: Path,
    documents: dict[str, Any],
    dtype: str,
    rows: int,
    rows_in_words: str,
    is_whole: bool = True,
) -> str:
    """Markdown with the metadata that the Hugging Face hub reads.

    ``documents`` is as ``Trained.documents`` gives it, ``rows`` those of embedding and head. Losses are the last that
    ``metrics.jsonl`` has up to the checkpoint's step; a run without that file has a card without them. Without
    ``is_whole`` the folder holds adapters and not the network below them.
    """
    network, lora = recipe.network, recipe.lora
    parameters = parameter_count(network, rows)
    residual = {source["task"] for source in documents["sources"].values()} == {"residual"}
    lines = [
        "---",
        f"library_name: {'transformers' if is_whole else 'peft'}",
        "pipeline_tag: text-to-audio",
        "tags: [music, llama, megatron-music]",
        "---",
        f"# {recipe.name}",
        "",
        f"{'A' if is_whole else 'Adapters of a'} music language model ({'stage 2' if residual else 'stage 1'}) "
        f"{'pretrained' if lora is None else 'adapted'} with megatron-music: {parameters:,} parameters, Llama "
        f"architecture, {dtype}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| tokens seen | {_tokens_seen(state, read_origin(checkpoint))} |",
        f"| layers, hidden, heads, key-value heads, ffn | {network.layers}, {network.hidden_size}, "
        f"{network.attention_heads}, {network.key_value_heads}, {network.ffn_hidden_size} |",
        f"| vocabulary | {rows_in_words}; `vocabulary.yaml` |",
        f"| longest context read, positions declared | {documents['context_tokens']:,}, {network.position_limit:,} |",
        f"| codec | {documents['codec']} |",
        f"| seed | {recipe.seed} |",
    ]
    if lora is not None:
        lines.append(f"| adapters | rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)} |")
    lines += ["", "## Training documents", "", "| source | task | shares by phase |", "| --- | --- | --- |"]
    for name, source in documents["sources"].items():
        shares = ", ".join(f"{phase} {share}" for phase, share in source["shares"].items())
        lines.append(f"| {name} | {TASKS_IN_WORDS.get(source['task'], source['task'])} | {shares} |")
    for title, losses in latest_losses(RunFolder(checkpoint.parents[1]).metrics, state.step).items():
        lines += ["", f"## {title}", "", "| tokens | nats a token |", "| --- | --- |"]
        lines += [f"| {group} | {value:.4f} |" for group, value in losses.items()]
    use = "--stage2" if residual else "--stage1"
    lines += [
        "",
        "## Use",
        "",
        f"`megatron-music generate {use} THIS_FOLDER ...` sings with it; `transformers.AutoModelForCausalLM` loads it. "
        if is_whole
        else "`peft.PeftModel.from_pretrained(NETWORK, THIS_FOLDER)` adds them to the network they were trained on. "
        "Ids mean what `vocabulary.yaml` says; text goes through `tokenizer.model` without a beginning-of-sequence id.",
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _tokens_seen(state: CheckpointState, origin: Origin | None) -> str:
    """Tokens of the run and, of a branch, in all: whatever its network had read before."""
    here = f"(step {state.step:,}, phase {state.phase})"
    if origin is None:
        return f"{state.tokens:,} {here}"
    return (f"{state.tokens + origin.tokens_in_all:,} in all: {state.tokens:,} {here} after {origin.tokens_in_all:,} "
            f"up to step {origin.step:,} of {origin.name}")  # fmt: skip


def latest_losses(metrics: Path, step: int) -> dict[str, dict[str, float]]:
    """Loss by kind of token, of training and held out, as last measured up to ``step``; empty without measurements."""
    titles = {"Training loss": "", "Held-out loss": "validation/"}
    found: dict[str, dict[str, float]] = {}
    if not metrics.is_file():
        return found
    for line in read_text(metrics).splitlines():
        try:
            measured = json.loads(line)
        except json.JSONDecodeError:
            # The last line of a run that was killed while writing it.
            continue
        if measured.get("step", step + 1) > step or "event" in measured:
            continue
        for title, prefix in titles.items():
            if prefix + "loss" in measured:
                found[title] = {
                    key.removeprefix(prefix).removeprefix("loss/").replace("loss", "all"): value
                    for key, value in measured.items()
                    if key == prefix + "loss" or key.startswith(prefix + "loss/")
                }
    return {title: found[title] for title in titles if title in found}

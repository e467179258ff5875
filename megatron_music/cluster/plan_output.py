"""A plan as text in sections, and as JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_music.cluster.forecast import PhaseTime, bubble
from megatron_music.cluster.layouts import RULE, USABLE, Proposal, fits
from megatron_music.cluster.parameters import Parameters
from megatron_music.cluster.plan import Cluster, Plan, Rank
from megatron_music.cluster.recipe_tables import group_table, mixture_table, phase_table
from megatron_music.recipe.gpus import GiB
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.tables import short_count, table

_PROPOSALS = 6
"""As many as are printed; JSON has them all."""


def print_plan(plan: Plan, plots: Path | None = None, is_json: bool = False) -> None:
    """Prints a plan, and draws its pictures into the folder ``plots``; then raises what stops the run, if anything."""
    if is_json:
        print(json.dumps(as_json(plan), indent=2))
    else:
        for section in sections(plan):
            print(f"{section}\n")
    if plots is not None:
        from megatron_music.cluster.plots import draw

        drawn = draw(plan, plots)
        if not is_json:
            print("drawn: " + ", ".join(map(str, drawn)))
    if plan.fault is not None:
        raise plan.fault


def sections(plan: Plan) -> Iterator[str]:
    """The plan in sections, each a heading with a table."""
    recipe, stocks = plan.recipe, plan.stocks
    yield summary(recipe)
    yield _section("Phases", phase_table(recipe))
    corpus = f"from {recipe.corpus}" if stocks is not None else f"no corpus at {recipe.corpus}: shares alone"
    yield _section(f"Mixture, by tokens ({corpus})", mixture_table(recipe, stocks))
    if any(phase.mixture.ratios for phase in recipe.phases) or recipe.groups:
        yield _section("Groups and ratios", group_table(recipe, stocks))
    yield _section("Warnings", _lessons(plan))
    if plan.cluster is not None:
        yield from _cluster_sections(recipe, plan.cluster)
    elif plan.parameters is not None:
        yield _section("Parameters", _parameters(plan.parameters))
    else:
        yield _section("Parameters", f"not counted: there is no vocabulary at {recipe.vocabulary}")


def summary(recipe: Recipe) -> str:
    """A recipe in one line."""
    last = phase_spans(recipe)[-1]
    return f"{recipe.name}: {last.last_step:,} steps, {short_count(last.last_token)} tokens, seed {recipe.seed}"


def _section(heading: str, body: str) -> str:
    return f"{heading}\n{'-' * len(heading)}\n{body}"


def _lessons(plan: Plan) -> str:
    if not plan.lessons:
        return "none: nothing here that the work behind the recipe found to fail"
    return "\n".join(f"{lesson.where}: {lesson.what} [{lesson.source}]" for lesson in plan.lessons)


def _cluster_sections(recipe: Recipe, cluster: Cluster) -> Iterator[str]:
    on = f"{cluster.gpus:,} {cluster.gpu.name}"
    yield _section(f"Layout on {on}", _layout(recipe, cluster))
    yield _section("Parameters", _parameters(cluster.parameters, cluster.ranks))
    if cluster.ranks:
        heading = f"Memory by rank, GiB of {cluster.gpu.name}'s {cluster.gpu.memory_bytes / GiB:.0f}"
        yield _section(heading, _memory(recipe, cluster))
    yield _section(f"Time on {on} at {cluster.mfu:.0%} MFU", _time(cluster))
    yield _section("Checkpoints", _checkpoints(cluster))
    yield _section("Layouts that fit", _proposals(cluster))


def _layout(recipe: Recipe, cluster: Cluster) -> str:
    rows = [["", "", "has to be a multiple of", "", "times"]]
    for division in cluster.divisions:
        times = f"{division.number // division.divisor:,}" if division.holds else "NO"
        rows.append([division.what, f"{division.number:,}", division.by, f"{division.divisor:,}", times])
    # Numbers stand right of their names.
    width = max(len(row[2]) for row in rows)
    lines = [table([[row[0], row[1], row[2].ljust(width), *row[3:]] for row in rows])]
    if cluster.fault is not None:
        return "\n".join([*lines, "This layout can't start."])
    copies = cluster.gpus // recipe.layout.model_processes
    lines.append(f"{_layout_words(recipe.layout)}: {copies:,} data-parallel copies")
    if recipe.layout.pipeline > 1:
        shares = [f"{phase.name} {bubble(recipe, copies, phase):.1%}" for phase in recipe.phases]
        lines.append(f"pipeline bubble: {', '.join(shares)}")
    if cluster.ranks and cluster.ranks[0].place is not None:
        ranks = ", ".join(str(rank.rank) for rank in cluster.ranks)
        lines.append(f"built without memory, groups and network: ranks {ranks}; parameters as below")
    return "\n".join(lines)


def _layout_words(layout: Layout) -> str:
    parts = [f"tensor {layout.tensor}", f"pipeline {layout.pipeline}", f"context {layout.context}"]
    if layout.interleave > 1:
        parts.append(f"interleave {layout.interleave}")
    if layout.sequence:
        parts.append("sequence split")
    return ", ".join([*parts, f"recompute {layout.recompute}"])


def _parameters(whole: Parameters, ranks: Sequence[Rank] = ()) -> str:
    rows = [["part", "whole model", *(f"rank {rank.rank}" for rank in ranks)]]
    for part, count in whole.by_part.items():
        if count:
            rows.append([part.replace("_", " "), f"{count:,}",
                         *(f"{rank.parameters.by_part[part]:,}" for rank in ranks)])  # fmt: skip
    rows.append(["all", f"{whole.total:,}", *(f"{rank.parameters.total:,}" for rank in ranks)])
    if whole.trained != whole.total:
        rows.append(["trained", f"{whole.trained:,}", *(f"{rank.parameters.trained:,}" for rank in ranks)])
    return table(rows)


def _memory(recipe: Recipe, cluster: Cluster) -> str:
    ranks = cluster.ranks
    rows = [["", *(f"rank {rank.rank}" for rank in ranks)]]
    for part in asdict(ranks[0].memory):
        amounts = [getattr(rank.memory, part) for rank in ranks]
        if any(amounts):
            rows.append([part.replace("_", " "), *map(_gib, amounts)])
    rows.append(["all", *(_gib(rank.memory.total) for rank in ranks)])
    rows.append(["share of the GPU", *(f"{rank.memory.total / cluster.gpu.memory_bytes:.0%}" for rank in ranks)])
    rows.append(["", *[""] * len(ranks)])
    for setting in ranks[0].activations:
        chosen = " (chosen)" if setting == recipe.layout.recompute else ""
        rows.append([f"activations, recompute {setting}{chosen}", *(_gib(rank.activations[setting]) for rank in ranks)])
    full = [str(rank.rank) for rank in ranks if not fits(rank.memory.total, cluster.gpu)]
    verdict = f"fits: every rank stays below {USABLE:.0%} of the GPU"
    if full:
        verdict = f"DOES NOT FIT: above {USABLE:.0%} of the GPU on rank {', '.join(full)}"
    return f"{table(rows)}\n{verdict}"


def _gib(size: int) -> str:
    return f"{size / GiB:.2f}"


def _time(cluster: Cluster) -> str:
    rows = [["phase", "GFLOP a token", "tokens/s a GPU", "tokens/s", "s a step", "days", "GPU-hours"]]
    for stretch in cluster.forecast:
        rows.append([stretch.phase, f"{stretch.flops_per_token / 1e9:.2f}", *_speed(stretch, cluster.gpus)])
    days = sum(stretch.days for stretch in cluster.forecast)
    hours = sum(stretch.gpu_hours for stretch in cluster.forecast)
    rows.append(["all", "", "", "", "", f"{days:.1f}", f"{hours:,.0f}"])
    note = (
        f"MFU: of {cluster.gpu.bf16_flops / 1e12:,.0f} TFLOP/s, dense BF16; causal attention counted at half the square"
    )
    return f"{table(rows)}\n{note}"


def _speed(stretch: PhaseTime, gpus: int) -> list[str]:
    return [
        f"{stretch.tokens_per_second:,.0f}",
        f"{stretch.tokens_per_second * gpus:,.0f}",
        f"{stretch.step_seconds:.2f}",
        f"{stretch.days:.2f}",
        f"{stretch.gpu_hours:,.0f}",
    ]


def _checkpoints(cluster: Cluster) -> str:
    size = cluster.checkpoint
    rows = [["", "GB"]]
    rows.append(["a checkpoint, with the optimizer", f"{size.full / 1e9:,.1f}"])
    rows.append(["its weights alone", f"{size.weights / 1e9:,.1f}"])
    rows.append([f"on the disk, {size.kept} checkpoints", f"{size.on_disk / 1e9:,.1f}"])
    return table(rows)


def _proposals(cluster: Cluster) -> str:
    if not cluster.proposals:
        return (f"none: on {cluster.gpus:,} {cluster.gpu.name} no layout both divides what has to be divided and fits; "
                "take another number of GPUs, larger ones, or other batches")  # fmt: skip
    rows = [["tensor", "pipeline", "context", "recompute", "copies", "micro-batches", "GiB"]]
    rows += [_proposal(proposal) for proposal in cluster.proposals[:_PROPOSALS]]
    more = len(cluster.proposals) - _PROPOSALS
    left = [f"{more:,} more with --json"] if more > 0 else []
    return "\n".join([table(rows, left=0), *left, RULE])


def _proposal(proposal: Proposal) -> list[str]:
    layout = proposal.layout
    counts = ", ".join(str(count) for count in dict.fromkeys(proposal.micro_batches))
    return [str(layout.tensor), str(layout.pipeline), str(layout.context), layout.recompute, f"{proposal.copies:,}",
            counts, _gib(proposal.peak_bytes)]  # fmt: skip


def as_json(plan: Plan) -> dict[str, Any]:
    """All that a plan holds, in plain types; bytes, tokens and parameters are whole numbers."""
    recipe = plan.recipe
    spans = phase_spans(recipe)
    content: dict[str, Any] = {
        "recipe": recipe.name,
        "steps": spans[-1].last_step,
        "tokens": spans[-1].last_token,
        "parameters": None if plan.parameters is None else plan.parameters.total,
        "phases": [
            {
                "name": span.phase.name,
                "first_step": span.first_step + 1,
                "last_step": span.last_step,
                "tokens": span.last_token - span.first_token,
                "context_tokens": span.phase.context_tokens,
                "batch_sequences": span.phase.batch_sequences,
                "learning_rate": span.phase.learning_rate.model_dump(),
                "unit": span.phase.mixture.unit if plan.stocks is None else "tokens",
                "shares": {" + ".join(part): float(share) for part, share in shares.items()},
            }
            for span, shares in zip(spans, plan.shares, strict=True)
        ],
        "warnings": [asdict(lesson) for lesson in plan.lessons],
        "fault": None if plan.fault is None else str(plan.fault),
    }
    if plan.cluster is not None:
        content["cluster"] = _cluster_json(plan.cluster)
    return content


def _cluster_json(cluster: Cluster) -> dict[str, Any]:
    content = asdict(cluster) | {"fault": None if cluster.fault is None else str(cluster.fault)}
    content["divisions"] = [asdict(division) | {"holds": division.holds} for division in cluster.divisions]
    for rank, of_rank in zip(cluster.ranks, content["ranks"], strict=True):
        of_rank["memory"] |= {"total": rank.memory.total, "allocated": rank.memory.allocated}
        of_rank["fits"] = fits(rank.memory.total, cluster.gpu)
    for proposal, of_proposal in zip(cluster.proposals, content["proposals"], strict=True):
        of_proposal["layout"] = proposal.layout.model_dump()
    content["days"] = sum(stretch.days for stretch in cluster.forecast)
    content["gpu_hours"] = sum(stretch.gpu_hours for stretch in cluster.forecast)
    return content

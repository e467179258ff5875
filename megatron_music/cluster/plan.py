"""`plan`: what a recipe will do, and on a number of GPUs what it takes: layout, memory, time, checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from megatron_music.cluster.forecast import Checkpoint, PhaseTime, checkpoint, forecast
from megatron_music.cluster.layouts import Division, Proposal, divisions, proposals
from megatron_music.cluster.memory import Memory, activations_by_recompute, memory_by_rank, stage_of_rank
from megatron_music.cluster.parameters import Parameters, parameters_of_stage, whole_parameters
from megatron_music.cluster.science import Lesson, Shares, forgotten_lessons
from megatron_music.corpus.blend import Stock, check_supply, read_stocks, token_shares
from megatron_music.errors import InputError
from megatron_music.recipe.gpus import Gpu, gpu_named
from megatron_music.recipe.mixture import solve
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Rank:
    """One process: its parameters and memory, and its activations under every setting of ``layout.recompute``.

    Attributes:
        place: its number in each kind of group, as megatron-core made them; None where nothing was built.
    """

    rank: int
    stage: int
    parameters: Parameters
    memory: Memory
    activations: Mapping[str, int]
    place: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Cluster:
    """What a recipe takes on a number of GPUs.

    Attributes:
        ranks: none where the layout can't start.
        fault: why the layout can't start, if it can't.
    """

    gpus: int
    gpu: Gpu
    mfu: float
    parameters: Parameters
    divisions: list[Division]
    ranks: list[Rank]
    forecast: list[PhaseTime]
    checkpoint: Checkpoint
    proposals: list[Proposal]
    fault: InputError | None


@dataclass(frozen=True)
class Plan:
    """What a recipe will do.

    Attributes:
        stocks: what the corpus holds of every source; None without a corpus.
        shares: of every phase's tokens, by source, or by those that only the corpus tells apart.
        parameters: of the whole model; None where its vocabulary file is not there.
        fault: what stops the run, if anything does: told after all the rest.
    """

    recipe: Recipe
    stocks: Mapping[str, Stock] | None
    shares: Sequence[Shares]
    parameters: Parameters | None
    lessons: list[Lesson] = field(default_factory=list)
    cluster: Cluster | None = None
    fault: InputError | None = None


def make_plan(
    recipe: Recipe,
    gpus: int | None = None,
    gpu: str = "H800",
    mfu: float = 0.4,
    ranks: Sequence[int] | None = None,
    build: bool = True,
) -> Plan:
    """The plan of a recipe, on ``gpus`` GPUs where they are given.

    Args:
        gpu: a name in ``gpus.GPUS``.
        mfu: share of the dense BF16 peak that the run is expected to reach.
        ranks: processes to look at; by default the first, the last and the first of every pipeline stage.
        build: makes megatron-core's groups and the network of these processes as well, without memory.

    Raises InputError where the corpus lacks a source, or an argument is wrong.
    """
    stocks = read_stocks(recipe) if recipe.corpus.is_dir() else None
    fault = None
    if stocks is None:
        shares = [solve(phase.mixture, recipe.groups) for phase in recipe.phases]
    else:
        by_source = token_shares(recipe, stocks)
        shares = [{(name,): share for name, share in of_phase.items()} for of_phase in by_source]
        try:
            check_supply(recipe, stocks, by_source)
        except InputError as error:
            fault = error
    lessons = forgotten_lessons(recipe, shares)
    there = recipe.vocabulary.is_file()
    parameters = whole_parameters(recipe, Vocabulary.load(recipe.vocabulary).padded_size) if there else None
    if gpus is None:
        if ranks:
            raise InputError("--rank", "is given without --gpus", "say on how many GPUs")
        return Plan(recipe, stocks, shares, parameters, lessons, fault=fault)
    if not 0 < mfu <= 1:
        raise InputError("--mfu", f"{mfu:g} is no share of the peak", "give one above 0 and at most 1, such as 0.4")
    outside = next((rank for rank in ranks or () if not 0 <= rank < gpus), None)
    if outside is not None:
        raise InputError("--rank", f"{outside} is no process of {gpus}", f"choose from 0 to {gpus - 1}")
    cluster = _plan_cluster(recipe, gpus, gpu_named(gpu), mfu, ranks, build)
    return Plan(recipe, stocks, shares, parameters, lessons, cluster, cluster.fault or fault)


def _plan_cluster(recipe: Recipe, gpus: int, gpu: Gpu, mfu: float, ranks: Sequence[int] | None, build: bool) -> Cluster:
    vocabulary_size = Vocabulary.load(recipe.vocabulary).padded_size
    checked = divisions(recipe, vocabulary_size, gpus)
    fault = next((_misfit(recipe, division) for division in checked if not division.holds), None)
    looked_at: list[Rank] = []
    if fault is None:
        looked_at = _ranks(recipe, vocabulary_size, gpus, ranks)
        if build:
            try:
                looked_at = _build(recipe, vocabulary_size, gpus, looked_at)
            except InputError as error:
                fault = error
    return Cluster(
        gpus=gpus,
        gpu=gpu,
        mfu=mfu,
        parameters=whole_parameters(recipe, vocabulary_size),
        divisions=checked,
        ranks=looked_at,
        forecast=forecast(recipe, vocabulary_size, gpus, gpu, mfu),
        checkpoint=checkpoint(recipe, vocabulary_size),
        proposals=proposals(recipe, vocabulary_size, gpus, gpu),
        fault=fault,
    )


def _misfit(recipe: Recipe, division: Division) -> InputError:
    what = f"{division.what} {division.number:,} is not a multiple of {division.by} = {division.divisor:,}"
    return InputError("layout", f"{recipe.name} can't start: {what}", "take one of the layouts that fit, or other GPUs")


def _ranks(recipe: Recipe, vocabulary_size: int, gpus: int, ranks: Sequence[int] | None) -> list[Rank]:
    firsts = range(0, gpus, gpus // recipe.layout.pipeline)
    ranks = sorted({*(ranks or (*firsts, gpus - 1))})
    found = []
    for rank, memory in memory_by_rank(recipe, vocabulary_size, gpus, ranks).items():
        stage = stage_of_rank(recipe, gpus, rank)
        parameters = parameters_of_stage(recipe, vocabulary_size, stage)
        found.append(
            Rank(rank, stage, parameters, memory, activations_by_recompute(recipe, vocabulary_size, gpus, stage))
        )
    return found


def _build(recipe: Recipe, vocabulary_size: int, gpus: int, ranks: list[Rank]) -> list[Rank]:
    from megatron_music.engine.dry_run import dry_run

    built = dry_run(recipe, vocabulary_size, gpus, [rank.rank for rank in ranks])
    for rank, real in zip(ranks, built, strict=True):
        planned = rank.parameters.by_part, rank.parameters.trained, rank.stage
        assert planned == (real.parameters, real.trained, real.place["pipeline"]), (rank, real)
    return [replace(rank, place=real.place) for rank, real in zip(ranks, built, strict=True)]

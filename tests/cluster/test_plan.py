"""``plan``: what it prints with and without a corpus."""

import json
from pathlib import Path

import pytest
import yaml
from matplotlib import image
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.cluster.parameters import parameters_of_stage
from megatron_music.cluster.plan import make_plan
from megatron_music.cluster.plan_output import as_json, sections
from megatron_music.engine.dry_run import dry_run
from megatron_music.errors import InputError
from megatron_music.recipe.phases import phase_spans
from megatron_music.recipe.recipe import Recipe
from megatron_music.tables import short_count, table


@pytest.fixture
def recipe_file(repository):
    return repository / "examples" / "yue_0.5b.yaml"


def cells(section: str) -> list[list[str]]:
    return [line.split() for line in section.splitlines()]


def tables(recipe: Recipe) -> list[str]:
    """The plan's first line and then, without their headings, the tables of phases, mixture and groups."""
    first, *others = sections(make_plan(recipe))
    return [first, *(section.split("\n", 2)[2] for section in others[:3])]


def test_counts_and_tables_are_short_and_straight():
    counts = [0, 7, 999, 1000, 6_291_456, 158_181_818_181, 1_770_000_000_000, 999_990_000]
    assert [short_count(count) for count in counts] == ["0", "7", "999", "1k", "6.291M", "158.2B", "1.77T", "1B"]
    assert table([["name", "of", "n"], ["a", "bc", "100"]], left=2) == "name  of    n\na     bc  100"


def test_a_plan_without_a_corpus_has_phases_and_exact_shares(recipe_file):
    recipe = Recipe.load(recipe_file, ["corpus=/nowhere"])
    heading, phases, mixture, groups = tables(recipe)
    assert heading == "yue_0.5b: 11,127 steps, 70.01B tokens, seed 1"
    assert cells(phases)[1] == ["warm-up", "0", "to", "0.0003,", "linear", "1-1,510", "9.5B", "8,192", "768"]
    assert cells(phases)[4][-4:] == ["11,001-11,127", "799M", "16,384", "384"]
    assert cells(list(sections(make_plan(recipe)))[-1])[-1] == [
        "all",
        f"{parameters_of_stage(recipe, 83_968, 0).total:,}",
    ]
    unknown = make_plan(recipe.model_copy(update={"vocabulary": Path("/nowhere.yaml")}))
    assert list(sections(unknown))[-1].endswith("not counted: there is no vocabulary at /nowhere.yaml")
    assert list(sections(make_plan(recipe)))[2].startswith("Mixture, by tokens (no corpus at /nowhere: shares alone)\n")
    rows = cells(mixture)[1:]
    assert ["warm-up", "lyrics_to_song_en_zh", "29/44", "65.91%", "tokens"] in rows
    assert ["constant", "lyrics_to_song_other", "29/132", "21.97%", "tokens"] in rows
    assert len(rows) == 4 + 8 + 6 + 2
    by_name = {line[:24].strip(): line[24:].split() for line in groups.splitlines()}
    assert by_name["conditional"][:4] == ["75.00%", "75.00%", "75.00%", "100.00%"]
    assert by_name["music:speech"][:4] == ["10:1", "10:1", "10:1", "-"]
    assert by_name["old:new in speech"][:4] == ["-", "2:1", "2:1", "-"]
    assert by_name["cot:icl"][:4] == ["-", "-", "-", "2:1"]


def test_shares_that_need_a_corpus_are_open_without_it(recipe_file):
    mixture = '{sources: [songs_a, songs_b, speech], ratios: ["songs:speech = 3:1"], unit: hours, rest: by_size}'
    recipe = Recipe.load(recipe_file, ["corpus=/nowhere", f"phases.constant.mixture={mixture}"])
    *_, mixture, groups = tables(recipe)
    assert ["constant", "songs_a", "+", "songs_b", "3/4", "75.00%", "hours"] in cells(mixture)
    assert groups.splitlines()[0].endswith(" annealing")
    by_name = {line[:24].strip(): line[24:].split() for line in groups.splitlines()}
    assert by_name["music"] == ["90.91%", "?", "90.91%", "100.00%"]
    assert by_name["songs:speech"] == ["-", "?", "-", "-"]


@pytest.fixture
def small(recipe_file, tmp_path):
    """The file of a recipe of two phases over a corpus of three sources, of which speech has no hours."""
    for name, tokens, seconds in [("songs", 1_000_000, 7200.0), ("mix", 500_000, 3600.0), ("speech", 250_000, None)]:
        about = {"tokens": tokens, "documents": 10, "seconds": seconds}
        (tmp_path / f"{name}.json").write_text(json.dumps(about))
    content = yaml.safe_load(recipe_file.read_text()) | {"corpus": str(tmp_path), "groups": {"music": ["songs", "mix"]}}
    first, second, *_ = content["phases"]
    size = {"context_tokens": 1000, "batch_sequences": 4}
    content["phases"] = [
        first | size | {"tokens": "4M", "mixture": {"songs": "1/2", "mix": "1/4", "speech": "1/4"}},
        second | size | {"tokens": "2M", "mixture": {"sources": ["songs", "speech"], "ratios": ["music:speech = 3:1"]}},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_plan_with_a_corpus_counts_tokens_hours_and_epochs(small):
    *_, mixture, groups = tables(Recipe.load(small, ["most_epochs={speech: 6}"]))
    rows = cells(mixture)[1:]
    assert ["warm-up", "songs", "1/2", "50.00%", "2M", "4.0", "2.00", "2.00"] in rows
    assert ["warm-up", "mix", "1/4", "25.00%", "1M", "2.0", "2.00", "2.00"] in rows
    assert ["warm-up", "speech", "1/4", "25.00%", "1M", "-", "4.00", "4.00"] in rows
    assert ["constant", "songs", "3/4", "75.00%", "1.5M", "3.0", "1.50", "3.50"] in rows
    assert ["constant", "speech", "1/4", "25.00%", "500k", "-", "2.00", "6.00"] in rows
    assert ["all", "songs", "7/12", "58.33%", "3.5M", "7.0", "3.50", "any"] in rows
    assert rows[-1] == ["all", "speech", "1/4", "25.00%", "1.5M", "-", "6.00", "6"]
    by_name = {line[:24].strip(): line[24:].split() for line in groups.splitlines()}
    assert by_name["music"] == ["75.00%", "75.00%", "75.00%"]
    assert by_name["music:speech"] == ["3:1", "3:1", "3:1"]


def test_the_verb_prints_the_tables_and_then_what_runs_out(small):
    shown = CliRunner().invoke(cli.app, ["plan", str(small)])
    assert shown.exit_code == 0 and "music:speech" in shown.output
    short = CliRunner().invoke(cli.app, ["plan", str(small), "--set", "most_epochs={speech: 5}"])
    before, after = cells(shown.output), cells(short.output)
    changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert [(one[:2], one[-1], other[-1]) for one, other in changed] == [(["all", "speech"], "any", "5")]
    assert isinstance(short.exception, InputError)
    assert "speech runs out in phase constant after 5,000,000 tokens of the run" in str(short.exception)


def test_a_corpus_that_lacks_a_source_is_told(small, tmp_path):
    (tmp_path / "mix.json").unlink()
    with pytest.raises(InputError, match="has no source mix"):
        make_plan(Recipe.load(small))


RECIPES = "yue_0.5b", "yue_2b", "yue_7b", "yue_stage2"
STARTS = {("yue_0.5b", 512): False, ("yue_2b", 512): False, ("yue_stage2", 512): True}
"""On 512 GPUs the small models leave more copies than the 384 sequences of a long phase can be dealt to."""


@pytest.mark.parametrize("gpus", [16, 96, 512])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_plan_on_16_96_and_512_gpus(repository, name, gpus):
    recipe = Recipe.load(repository / "examples" / f"{name}.yaml", ["corpus=/nowhere"])
    plan = make_plan(recipe, gpus, build=False)
    starts = STARTS.get((name, gpus), True)
    assert (plan.fault is None) == starts == bool(plan.cluster.ranks)
    headings = [section.split("\n")[0].split(",")[0].split(" on ")[0] for section in sections(plan)]
    expected = ["Phases", "Mixture", *(["Groups and ratios"] if recipe.groups else []), "Warnings", "Layout",
                "Parameters", *(["Memory by rank"] if starts else []), "Time", "Checkpoints",
                "Layouts that fit"]  # fmt: skip
    assert headings[1:] == expected
    content = json.loads(json.dumps(as_json(plan)))
    assert content["tokens"] == phase_spans(recipe)[-1].last_token
    cluster = content["cluster"]
    assert cluster["gpu_hours"] == pytest.approx(24 * gpus * cluster["days"])
    assert all(rank["fits"] for rank in cluster["ranks"])
    if starts:
        # The last process, the first of every stage, and the parameters of the stages' processes make the model.
        layout = recipe.layout
        firsts = [rank for rank in cluster["ranks"] if rank["rank"] % (gpus // layout.pipeline) == 0]
        assert len(firsts) == layout.pipeline and cluster["ranks"][-1]["rank"] == gpus - 1
        matrices = [sum(rank["parameters"][part] for rank in firsts) for part in ("embedding", "attention", "output")]
        assert [layout.tensor * count for count in matrices] == [
            cluster["parameters"][part] for part in ("embedding", "attention", "output")
        ]
    assert cluster["proposals"]


def test_megatron_core_builds_on_512_processes_what_the_plan_counts(repository):
    """``make_plan`` compares the parameters; here the places that megatron-core gives."""
    fields = ["corpus=/nowhere", "layout.interleave=2", "layout.context=2", "precision=fp8-delayed"]
    recipe = Recipe.load(repository / "examples" / "yue_7b.yaml", fields)
    built = make_plan(recipe, 512, ranks=[0, 3, 4, 300, 511])
    assert built.fault is None
    assert {rank.rank: dict(rank.place) for rank in built.cluster.ranks} == {
        rank: {"tensor": rank % 4, "context": rank // 4 % 2, "data": rank // 8 % 32, "pipeline": rank // 256}
        for rank in (0, 3, 4, 300, 511)
    }
    assert built.cluster.ranks[0].parameters.total == 778_174_464


def test_adapters_are_built_as_they_are_counted(repository):
    recipe = Recipe.load(repository / "examples" / "yue_2b.yaml", ["lora={rank: 4, alpha: 4, full_embeddings: true}"])
    (built,) = dry_run(recipe, 83968, 4, [2])
    counted = parameters_of_stage(recipe, 83968, 0)
    assert (built.parameters, built.trained) == (counted.by_part, counted.trained)


def test_what_megatron_core_refuses_is_one_line(repository):
    recipe = Recipe.load(repository / "examples" / "yue_2b.yaml")
    with pytest.raises(InputError, match=r"layout: rank 0 of 3 can't start: \w+: .*3.*; change the layout"):
        dry_run(recipe, 83968, 3, [0])


def test_a_layout_that_cannot_start_is_told_after_the_rest(repository):
    recipe = str(repository / "examples" / "yue_0.5b.yaml")
    shown = CliRunner().invoke(cli.app, ["plan", recipe, "--gpus", "512"])
    assert "This layout can't start." in shown.output and "Layouts that fit" in shown.output
    assert isinstance(shown.exception, InputError)
    what = "yue_0.5b can't start: batch of warm-up 768 is not a multiple of copies x micro-batch = 512"
    assert str(shown.exception) == f"{recipe}: layout: {what}; take one of the layouts that fit, or other GPUs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "16", "--gpu", "B300"], "--gpu: 'B300' is not known; choose one of H100 PCIe, H100, H800"),
        (["--gpus", "16", "--mfu", "40"], "--mfu: 40 is no share of the peak; give one above 0 and at most 1"),
        (["--gpus", "16", "--rank", "16"], "--rank: 16 is no process of 16; choose from 0 to 15"),
        (["--rank", "0"], "--rank: is given without --gpus; say on how many GPUs"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_built(repository, arguments, message):
    shown = CliRunner().invoke(cli.app, ["plan", str(repository / "examples" / "yue_2b.yaml"), *arguments])
    assert isinstance(shown.exception, InputError)
    assert str(shown.exception).startswith(message) and not shown.output


def test_pictures_are_drawn_and_json_is_all_that_is_printed(small, tmp_path):
    shown = CliRunner().invoke(cli.app, ["plan", str(small), "--json", "--plots", str(tmp_path / "plots")])
    content = json.loads(shown.output)
    assert content["phases"][1]["shares"] == {"songs": 0.75, "speech": 0.25}
    assert (content["steps"], content["fault"]) == (1500, None)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["learning_rate.png", "mixture.png"]
    for path in (tmp_path / "plots").iterdir():
        pixels = image.imread(path)
        assert pixels.shape[1] == 1248 and pixels.min() < 0.2

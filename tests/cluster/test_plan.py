"""``plan``: what it prints with and without a corpus."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.cluster.plan import plan
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.tables import short_count, table


@pytest.fixture
def recipe_file(repository):
    return repository / "examples" / "yue_0.5b.yaml"


def cells(section: str) -> list[list[str]]:
    return [line.split() for line in section.splitlines()]


def test_counts_and_tables_are_short_and_straight():
    counts = [0, 7, 999, 1000, 6_291_456, 158_181_818_181, 1_770_000_000_000, 999_990_000]
    assert [short_count(count) for count in counts] == ["0", "7", "999", "1k", "6.291M", "158.2B", "1.77T", "1B"]
    assert table([["name", "of", "n"], ["a", "bc", "100"]], left=2) == "name  of    n\na     bc  100"


def test_a_plan_without_a_corpus_has_phases_and_exact_shares(recipe_file):
    heading, phases, mixture, groups = plan(Recipe.load(recipe_file, ["corpus=/nowhere"]))
    assert heading == "yue_0.5b: 11,127 steps, 70.01B tokens, seed 1"
    assert cells(phases)[1] == ["warm-up", "0", "to", "0.0003,", "linear", "1-1,510", "9.5B", "8,192", "768"]
    assert cells(phases)[4][-4:] == ["11,001-11,127", "799M", "16,384", "384"]
    assert mixture.startswith("no corpus at /nowhere: shares alone\n")
    rows = cells(mixture)[2:]
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
    *_, mixture, groups = plan(recipe)
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
    *_, mixture, groups = plan(Recipe.load(small, ["most_epochs={speech: 6}"]))
    rows = cells(mixture)[2:]
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
        list(plan(Recipe.load(small)))

"""The command line: help with an example for every verb, and bad input in one line."""

import os
import resource
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.errors import InputError


def verbs_of(group, *before):
    """Every verb as the words of the command line that name it, groups of verbs before their own."""
    found = []
    for name, command in sorted(group.commands.items()):
        found.append([*before, name])
        found += verbs_of(command, *before, name) if hasattr(command, "commands") else []
    return found


VERBS = verbs_of(get_command(cli.app))


def run_main(monkeypatch, capsys, *arguments):
    """Exit status and standard error of ``megatron-music ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["megatron-music", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example_of_itself(words):
    shown = CliRunner().invoke(cli.app, [*words, "--help"])
    assert shown.exit_code == 0
    assert f"Example: megatron-music {' '.join(words)}" in shown.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "nowhere.yaml"], "error: nowhere.yaml: no such file; check the path\n"),
        (["build", "nowhere.yaml", "out"], "error: nowhere.yaml: no such file; check the path\n"),
        (["encode", "nowhere.jsonl", "out", "--codec", "xcodec"], "error: "),
        (["export", "nowhere", "out"], "error: nowhere"),
        (["inspect", "nowhere/songs"], "error: nowhere/songs"),
        (["evaluate", "model", "nowhere", "a", "b"], "error: nowhere"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(monkeypatch, capsys, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    status, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert error.startswith(line) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_recipe_with_an_unknown_key_is_named_with_its_file(monkeypatch, capsys, repository, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((repository / "examples" / "quickstart.yaml").read_text() + "\nlearning_rat: 3\n")
    status, error = run_main(monkeypatch, capsys, "train", str(recipe))
    assert status == 2
    assert error.startswith(f"error: {recipe}: learning_rat: unknown field")


def test_a_tensor_size_that_does_not_divide_the_heads_is_refused(monkeypatch, capsys, repository):
    recipe = str(repository / "examples" / "yue_7b.yaml")
    status, error = run_main(monkeypatch, capsys, "train", recipe, "--set", "layout.tensor=8")
    assert status == 2
    assert "layout.tensor 8 does not divide network.key_value_heads 4" in error


def test_a_fault_that_shows_beside_the_processes_names_the_recipe_too(monkeypatch, capsys, repository):
    recipe = str(repository / "examples" / "yue_7b.yaml")
    status, error = run_main(monkeypatch, capsys, "train", recipe, "--processes", "3")
    assert status == 2
    assert error.startswith(f"error: {recipe}: layout: 3 processes are not a multiple of tensor x pipeline x context")


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["megatron-music", "--debug", "train", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(InputError):
        cli.main()


def test_a_disk_that_takes_no_more_is_one_line(tmp_path):
    """A limit of the process on the size of files stands in for a full disk."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "song.txt").write_text("la")
    command = [sys.executable, "-m", "megatron_music", "manifest", str(tmp_path / "in"), str(tmp_path / "out")]
    limits = (resource.RLIMIT_FSIZE, (1, 1))
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(*limits),
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / 'out'}/rejects.parquet: ") and "File too large" in done.stderr
    assert not list((tmp_path / "out").glob("*.jsonl"))

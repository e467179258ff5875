"""What is printed where the terminal has few letters, is narrow, or has gone."""

import io
import json
import os
import subprocess
import sys

import pytest

from megatron_music import terminal

NAME = "音乐 été"
ESCAPED = NAME.encode("ascii", "backslashreplace").decode()
FEW_LETTERS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "cp1252, strict": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of a name that few terminals can write, whose loss falls."""
    folder = tmp_path_factory.mktemp("runs") / NAME
    folder.mkdir()
    lines = [{"step": 0, "time": 1.0, "event": "started", "steps": 4, "total_tokens": 400}]
    lines += [{"step": step, "time": 1.0 + step, "phase": NAME, "tokens": 100 * step, "learning_rate": 0.1,
               "loss": 9.0 - step, "loss/vocal": 8.0 - step} for step in range(1, 3)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def status(run_folder, environment, *options):
    command = [sys.executable, "-m", "megatron_music", "status", run_folder.name, *options]
    return subprocess.run(command, capture_output=True, cwd=run_folder.parent, env=os.environ | environment)


@pytest.mark.parametrize("environment", FEW_LETTERS.values(), ids=FEW_LETTERS)
def test_a_terminal_of_few_letters_has_other_bars_and_every_name(run_folder, environment):
    shown = status(run_folder, environment)
    assert (shown.returncode, shown.stderr) == (0, b"")
    text = shown.stdout.decode("latin-1")
    assert "###############--------------- 50.0%: 200 of 400 tokens" in text and "#_" in text
    if environment.get("PYTHONIOENCODING") == "ascii":
        assert text.startswith(f"{ESCAPED}  silent") and f"phase {ESCAPED}, step 2 of 4" in text


def test_a_terminal_of_all_letters_has_them(run_folder):
    shown = status(run_folder, {"PYTHONIOENCODING": "utf-8", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20"})
    assert shown.stdout.decode().startswith(f"{NAME}  silent") and "█▁" in shown.stdout.decode()


def test_errors_that_the_user_names_stay(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:replace")
    terminal.take_any_text()
    out.write("é")
    out.flush()
    assert out.buffer.getvalue() == b"?" and os.environ["PYTHONIOENCODING"] == "ascii:replace"


def test_processes_that_are_started_take_any_text_too(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setattr(sys, "stdout", None)  # as where it is closed before the start
    terminal.take_any_text()
    said = subprocess.run([sys.executable, "-c", f"print({NAME!r})"], capture_output=True, text=True, check=True)
    assert said.stdout == ESCAPED + "\n"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_has_gone_is_no_error(run_folder, options):
    command = [sys.executable, "-m", "megatron_music", "status", str(run_folder), *options]
    receiving, sending = os.pipe()
    os.close(receiving)
    try:
        done = subprocess.run(command, stdout=sending, stderr=subprocess.PIPE)
    finally:
        os.close(sending)
    assert done.stderr == b""


def test_work_goes_on_where_its_log_is_no_longer_read(tmp_path):
    code = ("from megatron_music.progress import console\nfor number in range(3): console.print(number)\n"
            f"open({str(tmp_path / 'done')!r}, 'w')")  # fmt: skip
    receiving, sending = os.pipe()
    os.close(receiving)
    try:
        assert subprocess.run([sys.executable, "-c", code], stderr=sending).returncode == 0
    finally:
        os.close(sending)
    assert (tmp_path / "done").exists()


def test_help_is_shown_on_a_narrow_terminal_of_few_letters():
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "COLUMNS": "20", "NO_COLOR": "1"}
    shown = subprocess.run([sys.executable, "-m", "megatron_music", "status", "--help"], capture_output=True,
                           env=environment)  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, b"") and b"--live" in shown.stdout

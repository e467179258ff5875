"""A run that is told to stop, killed and made to hang goes on by itself, and learns what an undisturbed one learns.

``make soak`` sets ``SOAK``: that many kills.
"""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_music.engine.processes import launch
from megatron_music.exits import ExitCode
from megatron_music.training.run import run_process

KILLER = Path(__file__).parents[1] / "moments"
KILLS = int(os.environ.get("SOAK", "3"))
EVERY_STEPS, WATCH = 2, {"log_every_steps": 1, "hang_minutes": 0.4}


@pytest.fixture(scope="module")
def recipe(make_module_recipe):
    """Enough steps for the kills to come before the end: at most four lie between two of them."""
    phases = make_module_recipe().model_dump(mode="json")["phases"]
    phases[1]["tokens"] = 128 * 4 * KILLS
    return make_module_recipe(phases=phases, watch=WATCH, checkpoints={"every_steps": EVERY_STEPS, "keep": 2})


@pytest.fixture(scope="module")
def losses(recipe) -> list[dict]:
    """Those of every step of an undisturbed run on two processes."""
    undisturbed = recipe.model_copy(update={"run": recipe.run.with_name("undisturbed")})
    launch(run_process, 2, undisturbed, None)
    return losses_of(undisturbed.run)


def losses_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name in ("step", "gradient_norm") or "loss" in name}
            for line in lines if "loss" in line]  # fmt: skip


def train(recipe, moments: list[dict], folder: Path, *options: str) -> subprocess.CompletedProcess:
    """``megatron-music train`` of a recipe on two processes, in which all the moments come."""
    recipe.save(folder / "recipe.yaml")
    (folder / "marks").mkdir(exist_ok=True)
    environment = os.environ | {"MOMENTS": json.dumps({"marks": str(folder / "marks"), "moments": moments})}
    environment["PYTHONPATH"] = os.pathsep.join([str(KILLER), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "megatron_music", "train", str(folder / "recipe.yaml"), "--processes=2", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    left = [moment for number, moment in enumerate(moments) if not (folder / "marks" / str(number)).exists()]
    assert not left, done.stderr
    return done


def seeded_kills(count: int) -> list[dict]:
    """One during a step, one in a save and one in a load, then any."""
    draw = random.Random(5)
    places = ["step", "save", "load"] + [draw.choice(["step", "save", "load"]) for _ in range(count - 3)]
    most = {"step": 4, "save": 3, "load": 2}
    return [{"place": place, "rank": draw.randrange(2), "count": draw.randint(1, most[place]), "deed": "kill"}
            for place in places]  # fmt: skip


def test_stopped_killed_at_seeded_moments_and_hanging_it_learns_what_an_undisturbed_run_learns(
    recipe, losses, tmp_path
):
    ask = {"place": "step", "rank": 1, "count": 2, "deed": "ask"}
    done = train(recipe, [ask], tmp_path)
    assert done.returncode == ExitCode.STOPPED, done.stderr
    # Asked in the second step, all know it after the third, where no checkpoint was due.
    told = f"{recipe.run}: stopped after step 3 of {len(losses)}, as asked, with a checkpoint; run it again to go on"
    assert done.stderr.splitlines()[-1] == told

    kills = seeded_kills(KILLS)
    hang = {"place": "step", "rank": 1, "count": 2, "deed": "hang"}
    done = train(recipe, [ask, *kills, hang], tmp_path, f"--restarts={KILLS + 1}")
    assert done.returncode == ExitCode.DONE, done.stderr
    for rank in (0, 1):
        struck = sum(moment["rank"] == rank for moment in kills)
        assert done.stderr.count(f"process {rank} of 2 was killed by SIGKILL\n") == struck
    assert done.stderr.count("\nstarting again from step ") == len(kills) + 1

    line = next(line for line in done.stderr.splitlines() if line.startswith("hang: "))
    assert re.search(r"rank 1: after step \d+: the next one, wait \(threading.py:\d+\) in _do \(loop.py:\d+\)", line)
    stacks = {path.name: path.read_text() for path in (recipe.run / "stacks").iterdir()}
    assert set(stacks) == {"rank_0.txt", "rank_1.txt"}
    hangs = [name for name, text in stacks.items() if re.search(r'sitecustomize.py", line \d+ in _do\n', text)]
    assert hangs == ["rank_1.txt"]
    assert all("in run_process\n" in text for text in stacks.values())
    assert losses_of(recipe.run) == losses

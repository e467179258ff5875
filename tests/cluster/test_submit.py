"""``submit``: what it refuses, what it writes, and a run on a real SLURM of one node that is preempted."""

import json
import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from megatron_music.cluster.submit import Job, parse_options, record, render, submit
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.training.run import run_process
from slurm import wait_until

MOMENTS = Path(__file__).parents[1] / "moments"
SMALL = {"gpus_per_node": 0, "processes": 1}


def losses_of(run: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "gradient_norm" in line]


def test_the_examples_are_what_the_template_gives(repository):
    examples = runpy.run_path(str(repository / "tools" / "slurm_examples.py"))["examples"]()
    assert {path: path.read_text() for path in (repository / "slurm").glob("*.sbatch")} == examples
    assert len(examples) == 3
    for path in examples:
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_a_dry_run_prints_the_file_and_writes_nothing(make_recipe):
    recipe = make_recipe()
    job = Job(
        2, **SMALL, sbatch=parse_options(["qos=long", "hold"], time="10"), container="image.sqsh", mounts=["/data"]
    )
    text = submit(recipe, job, dry_run=True)
    for line in ("--nodes=2", "--qos=long", "--hold", "--time=10", f"--output={recipe.run}/submitted/%j.log"):
        assert f"\n#SBATCH {line}\n" in text
    assert "gpus" not in text and f":{recipe.corpus},{recipe.run}:{recipe.run},/data:/data python -m" in text
    assert not recipe.run.exists()
    assert "container" not in render(recipe, Job(1), recipe.run) and "NCCL" not in render(recipe, Job(1), recipe.run)


@pytest.mark.parametrize(
    ("job", "phases", "path", "message"),
    [
        (Job(3, **SMALL), "one", "", "phases[0].batch_sequences: 4 is not a multiple of 3 data-parallel processes"),
        (Job(1, **SMALL), "all", "", "--phases: 'all' is not known; name one of one, chain"),
        (Job(1, **SMALL), "one", "nowhere", "submit: there is no sbatch on this machine; run it on a login node"),
    ],
)
def test_what_can_not_run_is_not_submitted(make_recipe, monkeypatch, tmp_path, job, phases, path, message):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path / path if path else tools))
    recipe = make_recipe()
    with pytest.raises(InputError) as caught:
        submit(recipe, job, phases)
    assert str(caught.value).startswith(message)
    assert not recipe.run.exists()


def test_code_and_environment_are_recorded(tmp_path, monkeypatch, repository):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("API_KEY", "secret")
    record(tmp_path)
    code = json.loads((tmp_path / "code.json").read_text())
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert (code["commit"] or "") == head.strip() and (tmp_path / "code.patch").exists() == bool(code["changed"])
    environment = (tmp_path / "environment.txt").read_text().splitlines()
    assert "NCCL_DEBUG=WARN" in environment and any(line.startswith("torch==") for line in environment)
    assert not any("secret" in line for line in environment)


def test_preempted_and_requeued_it_learns_what_an_uninterrupted_run_learns(slurm, make_recipe, tmp_path, monkeypatch):
    fields = {"watch": {"log_every_steps": 1}, "checkpoints": {"every_steps": 100, "keep": 2}}
    straight = make_recipe(**fields, run=str(tmp_path / "straight"))
    launch(run_process, 1, straight, None)

    marks = tmp_path / "marks"
    marks.mkdir()
    moment = {"place": "step", "rank": 0, "count": 5, "deed": "preempt"}
    monkeypatch.setenv("MOMENTS", json.dumps({"marks": str(marks), "moments": [moment]}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(MOMENTS), os.environ.get("PYTHONPATH", "")]))
    recipe = make_recipe(**fields)
    told = submit(recipe, Job(1, **SMALL, sbatch={"time": "20"}))
    job = re.search(r"^job (\d+); log: ", told, re.MULTILINE)[1]
    wait_until(lambda: not slurm.queue(), "the end of the job", seconds=600)
    log = (recipe.run / "submitted" / f"{job}.log").read_text()
    assert (marks / "0").exists(), log
    # Told in the fifth step, the process knows it after the sixth.
    assert f"{recipe.run}: stopped after step 6 of 12, as asked, with a checkpoint; run it again to go on\n" in log
    assert "going on after step 6 of 12" in log
    assert losses_of(recipe.run) == losses_of(straight.run)
    assert "JobState=COMPLETED" in slurm.call("scontrol", "show", "job", job)
    assert "Restarts=1" in slurm.call("scontrol", "show", "job", job)
    names = {"code.json", "environment.txt", "recipe.yaml", "train.sbatch", f"{job}.log"}
    assert names <= {path.name for path in (recipe.run / "submitted").iterdir()}


def test_a_cancelled_job_is_not_requeued_though_its_run_stops_with_a_checkpoint(slurm, make_recipe, tmp_path):
    """With a stand-in for Python, which ends as a run does that is told to stop: the sbatch file is what is tested."""
    python, started = tmp_path / "bin" / "python", tmp_path / "started"
    python.parent.mkdir()
    lines = ["#!/bin/bash", '[ "$3" = preflight ] && exit', "trap 'exit 75' USR1 TERM", f"touch {started}"]
    python.write_text("\n".join([*lines, "sleep infinity &", "wait"]) + "\n")
    python.chmod(0o755)
    told = submit(make_recipe(), Job(1, **SMALL, environment=f"PATH={python.parent}:$PATH"))
    job = re.search(r"^job (\d+); log: ", told, re.MULTILINE)[1]
    wait_until(started.exists, "the run")
    slurm.call("scancel", job)
    wait_until(lambda: not slurm.queue(), "an empty queue")
    shown = slurm.call("scontrol", "show", "job", job)
    assert "JobState=CANCELLED" in shown and "ExitCode=75:0" in shown and "Restarts=0" in shown


def test_a_chain_has_a_job_for_each_phase_that_waits_for_the_one_before(slurm, make_recipe):
    told = submit(make_recipe(), Job(1, **SMALL, sbatch=parse_options(["hold"])), "chain")
    jobs = re.findall(r"^job (\d+): until the end of ([\w-]+); ", told, re.MULTILINE)
    assert [phase for _, phase in jobs] == ["warm-up", "constant", "long"]
    waiting = slurm.call("squeue", "--noheader", "--sort=i", "--format=%i %E").splitlines()
    assert [line.split()[0] for line in waiting] == [job for job, _ in jobs]
    for (before, _), line in zip(jobs, waiting[1:], strict=False):
        assert f"afterok:{before}" in line

"""An encoding as a job array on a real SLURM of one node."""

import re
import subprocess

import psutil
import pytest
from encode_cases import (
    KILLER,
    OPTIONS,
    assert_shards_are_whole,
    contents,
    encode_command,
    run_encode,
)

from megatron_music.corpus.encode import encode_manifest
from megatron_music.corpus.executors import Machines
from megatron_music.errors import InputError
from slurm import wait_until

SLURM = ("--executor=slurm", "--tasks=3", "--wait")


def test_an_array_leaves_what_local_processes_leave(slurm, songs, straight, tmp_path):
    out = tmp_path / "codes"
    done = run_encode(
        songs, out, *SLURM, "--time=10", "--partition=main", "--sbatch=comment=spring clean", "--workers=2"
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    first, second = done.stderr.splitlines()
    array, end = re.fullmatch(
        rf"submitted 3 tasks as job (\d+); job (\d+) then writes {out}/manifest.jsonl", first
    ).groups()
    assert second.startswith(f"look: squeue --jobs={array},{end}, ") and f"scancel {end} {array};" in second
    assert contents(out) == straight
    assert sorted(path.name for path in (out / "logs" / "tasks" / "completions").iterdir()) == [
        "00000",
        "00001",
        "00002",
    ]
    script = (out / "logs" / "tasks" / "launch_script.slurm").read_text()
    assert (
        '#SBATCH --comment="spring clean"\n' in script and "#SBATCH --array=0-2%2\n" in script and "qos" not in script
    )
    # Local processes find nothing left to do.
    assert (run_encode(songs, out).returncode, contents(out)) == (0, straight)


def test_a_killed_task_is_told_and_the_next_submission_goes_on(slurm, songs, straight, tmp_path):
    out = tmp_path / "codes of May"
    done = run_encode(songs, out, *SLURM, kill_at={"file": r"codes-0000[12]\.parquet"})
    assert done.returncode == 2
    assert re.search(
        rf"\nerror: {out}: 1 of 3 tasks did not finish \([12]\); see .*finished shards are kept\n", done.stderr
    )
    assert not (out / "manifest.jsonl").exists() and assert_shards_are_whole(out, straight) == 2
    kept = {path: path.stat().st_mtime_ns for path in out.glob("codes-*.parquet")}
    done = run_encode(songs, out, "--executor=slurm", "--tasks=2", "--wait")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(out) == straight


def test_jobs_are_cancelled_and_refused_a_second_time_until_then(slurm, songs, straight, tmp_path, monkeypatch):
    out = tmp_path / "codes"
    # A task that interrupts nobody but itself waits for ever at its first shard: it is there to be cancelled.
    monkeypatch.setenv("PYTHONPATH", str(KILLER))
    monkeypatch.setenv(
        "KILL_AT",
        '{"file": "codes-00000.parquet", "count": 1, "after": false, "victim": "self", "signal_name": "SIGCONT", '
        f'"once": "{tmp_path / "waiting"}"}}',
    )
    submitted = subprocess.run(
        encode_command(songs, out, "--executor=slurm", "--tasks=1"), capture_output=True, text=True
    )
    assert submitted.returncode == 0, submitted.stderr
    wait_until((tmp_path / "waiting").exists, "the task at its first shard")
    for machines in (Machines("slurm"), Machines()):
        with pytest.raises(
            InputError, match=r"codes: (jobs \d+, \d+ are still|another run is) filling this folder; wait"
        ):
            encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=machines)
    slurm.call("scancel", *re.search(r"scancel (\d+) (\d+)", submitted.stderr).groups())
    wait_until(lambda: not slurm.queue(), "an empty queue")
    monkeypatch.delenv("KILL_AT")
    assert assert_shards_are_whole(out, straight) == 0
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(out) in str(process.info["cmdline"])]
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines("slurm", tasks=3, wait=True))
    assert contents(out) == straight


def test_what_a_task_says_of_bad_input_is_the_waiting_ones_line(slurm, songs, tmp_path):
    out = tmp_path / "codes"
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines(workers=1))
    (out / "codes-00001.parquet").unlink()
    (out / "codec" / "codebooks.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="codebooks.safetensors: can't be read"):
        encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines("slurm", tasks=2, wait=True))
    assert not (out / "manifest.jsonl").exists()


def test_what_sbatch_refuses_is_told(slurm, songs, tmp_path, capfd):
    with pytest.raises(InputError, match=r"sbatch: refused the job \(status 1\); mend the options"):
        machines = Machines("slurm", partition="nowhere")
        encode_manifest(songs / "manifest.jsonl", tmp_path / "codes", **OPTIONS, machines=machines)
    assert "invalid partition specified: nowhere" in capfd.readouterr().err
    assert not slurm.queue()

"""An encoding as a job array on a real SLURM of one node."""

import re
import shutil
import subprocess

import psutil
import pytest
from encode_cases import (
    FITTED,
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
from megatron_music.songs.manifest import read_manifest
from slurm import wait_until

SLURM = ("--executor=slurm", "--tasks=3", "--wait")


def test_an_array_leaves_what_local_processes_leave(slurm, songs, straight, tmp_path):
    out = tmp_path / "codes"
    done = run_encode(
        songs, out, *SLURM, "--time=10", "--partition=main", "--sbatch=comment=spring clean", "--workers=2"
    )
    told = (
        f"songs        5 of 5 are encoded\nhours        0.00\nshards       3\ncodec        {FITTED}\nrejected     0\n"
        f"written      {out}/manifest.jsonl\n"
    )
    assert (done.returncode, done.stdout) == (0, told), done.stderr
    assert told in "".join(path.read_text() for path in (out / "logs" / "finish" / "slurm_logs").iterdir())
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


def test_too_many_rejects_fail_the_last_job_and_who_waits_for_it(slurm, songs, tmp_path):
    broken, out = tmp_path / "broken", tmp_path / "codes"
    shutil.copytree(songs, broken)
    for number in (0, 3):
        (broken / str(number) / "mix.flac").write_bytes(b"not audio")
    done = run_encode(broken, out, *SLURM, "--max-rejected=0.25")
    line = f"error: {out}: 2 of 5 songs were rejected, a larger share than --max-rejected 0.25; "
    assert (done.returncode, done.stderr.splitlines()[-1].startswith(line)) == (2, True), done.stderr
    assert "songs        3 of 5 are encoded\n" in done.stdout and "  audio_unreadable   2\n" in done.stdout
    log = "".join(path.read_text() for path in (out / "logs" / "finish" / "slurm_logs").iterdir())
    assert done.stdout in log and line in log
    assert len(list(read_manifest(out / "manifest.jsonl"))) == 3


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

"""An encoding that is killed, interrupted or told to stop, as a process, and started again: nothing lost or doubled."""

import random
import signal

import pytest
from encode_cases import OPTIONS, assert_shards_are_whole, contents, run_encode

from megatron_music.corpus.encode import encode_manifest
from megatron_music.corpus.executors import Machines

SINGLE_FILES = [r"codec", r"encoding\.json", r"rejects\.parquet", r"manifest\.jsonl"]
SHARD_FILES = [r"\d+\.json", r"codes-\d+\.parquet"]


def assert_one_line(error: str, start: str) -> None:
    assert error.startswith(f"error: {start}") and error.count("\n") == 1, error


@pytest.mark.parametrize("file,after", [*zip(SINGLE_FILES, [False, False, True, False], strict=True), ("codec", True)])
def test_killed_at_a_file_that_is_written_once(songs, straight, tmp_path, file, after):
    out = tmp_path / "codes"
    done = run_encode(songs, out, "--workers=1", kill_at={"file": file, "after": after})
    assert done.returncode == -signal.SIGKILL and done.stderr == ""
    shards = assert_shards_are_whole(out, straight)
    assert shards == (3 if file in SINGLE_FILES[2:] else 0)
    assert (out / "manifest.jsonl").exists() == (file == r"manifest\.jsonl" and after)
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines(workers=1, tasks=2))
    assert contents(out) == straight


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_a_seeded_moment_and_started_again_on_another_number_of_workers(songs, straight, tmp_path, seed):
    draw, out = random.Random(seed), tmp_path / "codes"
    victim, workers = draw.choice([("self", 1), ("self", 2), ("parent", 2)])
    kill_at = {"file": draw.choice(SHARD_FILES), "after": draw.random() < 0.5, "count": draw.choice([1, 2])}
    done = run_encode(songs, out, f"--workers={workers}", kill_at=kill_at | {"victim": victim})
    if (victim, workers) == ("self", 2):
        assert done.returncode == 2
        assert_one_line(done.stderr, "worker: a worker process was killed; it may have run out of memory")
    else:
        assert done.returncode == -signal.SIGKILL
    assert not (out / "manifest.jsonl").exists()
    assert_shards_are_whole(out, straight)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("codes-*.parquet")}
    machines = Machines(workers=3 - workers, tasks=draw.choice([None, 1, 2]))
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=machines)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(out) == straight


def test_killed_three_times_over(songs, straight, tmp_path):
    out = tmp_path / "codes"
    for number, kill_at in enumerate(
        [{"file": r"0000\d\.json"}, {"file": r"codes-\d+\.parquet", "after": True}, {"file": r"manifest\.jsonl"}]
    ):
        assert run_encode(songs, out, f"--workers={1 + number % 2}", kill_at=kill_at).returncode != 0
        assert_shards_are_whole(out, straight)
    done = run_encode(songs, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("songs        5 of 5 are encoded\n") and "rejected     0\n" in done.stdout
    assert contents(out) == straight


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_it_ends_at_once_and_quietly(songs, straight, tmp_path, workers):
    out = tmp_path / "codes"
    kill_at = {"file": r"codes-\d+\.parquet", "victim": "group", "signal_name": "SIGINT"}
    done = run_encode(songs, out, f"--workers={workers}", kill_at=kill_at)
    assert done.returncode not in (0, 2) and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1
    assert_shards_are_whole(out, straight)
    assert not [path for path in out.iterdir() if path.name.startswith(".codes")]
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines(workers=1))
    assert contents(out) == straight


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_says_of_bad_input_is_one_line(songs, straight, tmp_path, workers):
    out = tmp_path / "codes"
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines(workers=1))
    for shard in out.glob("codes-*.parquet"):
        shard.unlink()
    tensors = out / "codec" / "codebooks.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    done = run_encode(songs, out, f"--workers={workers}")
    assert done.returncode == 2
    assert_one_line(done.stderr, f"{tensors}: can't be read")
    tensors.write_bytes(whole)
    encode_manifest(songs / "manifest.jsonl", out, **OPTIONS, machines=Machines(workers=1))
    assert contents(out) == straight

"""A build that is killed, as a process, and started again: the same bytes, nothing lost, doubled or half-written."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from building import SOURCES, add_copies, contents, write_spec

from megatron_music.corpus.build import build_corpus
from megatron_music.corpus.indexed import IndexedSource

SIGNED, TABLE = r"\d{6}\.parquet", r"near_duplicates\.parquet"
PART_FILES = [r"\d{6}\.bin", r"\d{6}\.json", r"\d{6}\.songs\.parquet"]
SOURCE_FILES = [r"cot\.bin", r"cot\.json", r"residual\.songs\.parquet", r"residual\.rejects\.parquet"]


@pytest.fixture(scope="module")
def spec(prepared, tmp_path_factory) -> Path:
    """Near-duplicates, filters, a held-out split and two tasks over 25 songs."""
    folder = tmp_path_factory.mktemp("killed") / "work"
    shutil.copytree(prepared, folder)
    add_copies(folder)
    filters = {"filters": {"max_held_share": {"vocals": 0.5}}}
    sources = {
        "cot": SOURCES["cot"] | filters,
        "residual": SOURCES["residual"],
        "test": SOURCES["cot"] | {"split": "held_out"},
    }
    return write_spec(folder, sources=sources, held_out=["song-021"], near_duplicates={"similarity": 0.2})


@pytest.fixture(scope="module")
def straight(spec) -> dict[str, bytes]:
    """What an undisturbed build leaves."""
    build_corpus(spec, spec.parent / "straight", processes=1)
    return contents(spec.parent / "straight")


def run_build(spec: Path, out: Path, processes: int, **kill_at) -> subprocess.CompletedProcess:
    defaults = {"count": 1, "after": False, "victim": "self", "signal_name": "SIGKILL"}
    kill_at = defaults | kill_at | {"once": str(out.with_suffix(".killed"))}
    command = [sys.executable, "-m", "megatron_music", "build", str(spec), str(out), f"--processes={processes}"]
    paths = [str(Path(__file__).parent / "killer"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"KILL_AT": json.dumps(kill_at), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def assert_sources_are_whole(out: Path, straight: dict[str, bytes]) -> None:
    """Whatever a reader takes for a source is the undisturbed build's."""
    for name in ("cot", "residual", "test"):
        if (out / f"{name}.json").exists():
            assert len(IndexedSource(out / name)) > 0
            for suffix in (".bin", ".idx", ".kind", ".json", ".songs.parquet"):
                assert (out / f"{name}{suffix}").read_bytes() == straight[f"{name}{suffix}"]


def assert_started_again_it_is_the_same(spec: Path, out: Path, straight: dict[str, bytes], processes: int) -> None:
    build_corpus(spec, out, processes=processes)
    assert contents(out) == straight
    left = {"cot.rejects.parquet", "residual.rejects.parquet", "test.rejects.parquet"}
    assert {path.name for path in (out / ".build").iterdir()} == left


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("file", [SIGNED, TABLE])
def test_killed_while_near_duplicates_are_looked_for(spec, straight, tmp_path, file, after):
    done = run_build(spec, tmp_path / "out", 1, file=file, after=after, count=2 if file == SIGNED else 1)
    assert done.returncode == -signal.SIGKILL
    parts = list((tmp_path / "out" / ".build").glob("near_duplicates-*.parts/*.parquet"))
    assert len(parts) == (1 + after if file == SIGNED else 4)
    assert (tmp_path / "out" / "near_duplicates.parquet").exists() == (file == TABLE and after)
    assert not list((tmp_path / "out").glob("*.json"))
    assert_started_again_it_is_the_same(spec, tmp_path / "out", straight, processes=1)


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_a_seeded_moment(spec, straight, tmp_path, seed):
    draw, out = random.Random(seed), tmp_path / "out"
    victim, processes = draw.choice([("self", 1), ("self", 2), ("parent", 2)])
    # Parts are what workers write, so only there a worker can be killed, or kill its parent.
    file = draw.choice(PART_FILES if processes == 2 else PART_FILES + SOURCE_FILES)
    count = draw.choice([1, 2]) if file in PART_FILES else 1
    done = run_build(spec, out, processes, file=file, victim=victim, after=draw.random() < 0.5, count=count)
    if (victim, processes) == ("self", 2):
        assert done.returncode == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and errors[0].startswith("error: worker: a worker process was killed")
    else:
        assert done.returncode == -signal.SIGKILL
    assert_sources_are_whole(out, straight)
    assert_started_again_it_is_the_same(spec, out, straight, processes=draw.choice([1, 2]))


def test_killed_again_and_again(spec, straight, tmp_path):
    out = tmp_path / "out"
    moments = [(SIGNED, 3), (TABLE, 1), (r"\d{6}\.json", 2), (r"residual\.idx", 1), (r"rejects\.parquet", 1)]
    for file, count in moments:
        out.with_suffix(".killed").unlink(missing_ok=True)
        assert run_build(spec, out, 1, file=file, count=count).returncode == -signal.SIGKILL
        assert_sources_are_whole(out, straight)
    assert_started_again_it_is_the_same(spec, out, straight, processes=1)


def test_killed_while_an_old_corpus_is_replaced_no_old_source_is_left_to_be_read(spec, straight, tmp_path):
    out = tmp_path / "out"
    other = yaml.safe_load(spec.read_text()) | {"held_out": ["song-003"]}
    (spec.parent / "other.yaml").write_text(yaml.safe_dump(other))
    build_corpus(spec.parent / "other.yaml", out, processes=1)
    assert run_build(spec, out, 1, file=r"cot\.bin").returncode == -signal.SIGKILL
    assert not list(out.glob("*.json"))  # none with the other held-out songs
    assert_started_again_it_is_the_same(spec, out, straight, processes=1)

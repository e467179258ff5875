"""Who started this process: a table of environments, each as a launcher or a shell leaves it."""

import sys

import pytest

from megatron_music.engine.launchers import AGENT_STORE, Start, read_start
from megatron_music.errors import InputError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
ELASTIC = TORCHRUN | {"TORCHELASTIC_RUN_ID": "a", AGENT_STORE: "True", "TORCHELASTIC_RESTART_COUNT": "2"}
STEP = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}  # fmt: skip
MEET = {"MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
ONE_A_NODE = STEP | MEET | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
BATCH = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
INTERACTIVE = BATCH | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_ID": "4294967290"}
NOTE = ("SLURM has allotted 2 tasks, and srun has not started this process: it uses this machine alone; start it with "
        "srun to be one of them")  # fmt: skip
LEFT_OVER = "RANK and WORLD_SIZE=1 are set: this is one process alone; unset them, or name --processes, for more"

STARTS = {
    "a shell": ({"HOME": "/root"}, Start()),
    "empty variables": (dict.fromkeys(["RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "PMI_SIZE"], ""), Start()),
    "torchrun's variables, by hand": (TORCHRUN, Start("torchrun", 3, 8, 1, "node7", 1234)),
    "without a port": (TORCHRUN | {"MASTER_PORT": " "}, Start("torchrun", 3, 8, 1, "node7", 29500)),
    "without a local rank": ({**MEET, "RANK": "1", "WORLD_SIZE": "2"}, Start("torchrun", 1, 2, 0, "node7", 1234)),
    "torchrun on several nodes": (ELASTIC, Start("torchrun", 3, 8, 1, "node7", 1234, agent_store=True)),
    "torchrun on one node": (ELASTIC | {"GROUP_WORLD_SIZE": "1"},
                             Start("torchrun", 3, 8, 1, "node7", 1234, restart="2", agent_store=True)),
    "torchrun with one process": ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "a"}, Start("torchrun")),
    "left over of one process": ({"RANK": "0", "WORLD_SIZE": "1"}, Start("torchrun", note=LEFT_OVER)),
    "WORLD_SIZE alone": ({"WORLD_SIZE": "8", "MASTER_ADDR": "node7"}, Start()),
    "torchrun in a step of srun": (STEP | TORCHRUN, Start("torchrun", 3, 8, 1, "node7", 1234)),
    "a task of srun": (STEP | MEET, Start("srun", 3, 4, 1, "node7", 1234)),
    "the only task of srun in a large job": (STEP | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1",
                                                     "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"}, Start()),
    "a task on each node": (ONE_A_NODE, Start("srun", 1, 2, 0, "node7", 1234, nodes=2)),
    "srun with PMI": (STEP | MEET | {"PMI_RANK": "3", "PMI_SIZE": "4"}, Start("srun", 3, 4, 1, "node7", 1234)),
    "an sbatch script": (BATCH, Start(note=NOTE)),
    "one that was sent from a step": (BATCH | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0"}, Start(note=NOTE)),
    "an interactive step": (INTERACTIVE, Start(note=NOTE)),
    "a shell of salloc": ({"SLURM_NTASKS": "2", "SLURM_NNODES": "1"}, Start(note=NOTE)),
    "an sbatch script for one task": ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Start()),
    "mpirun with one process": ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, Start()),
    "mpirun around torchrun's variables": (TORCHRUN | {"PMI_SIZE": "8", "PMI_RANK": "0"},
                                           Start("torchrun", 3, 8, 1, "node7", 1234)),
}  # fmt: skip


@pytest.mark.parametrize(("environment", "start"), STARTS.values(), ids=STARTS)
def test_who_started_this_process(environment, start):
    assert read_start(environment) == start


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"RANK": "0"}, "WORLD_SIZE: is not set, though RANK is 0; unset RANK"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE: is not set, though RANK is 0"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR: is not set, though RANK is 0 and WORLD_SIZE 2; export"),
        (TORCHRUN | {"RANK": "abc"}, "RANK: 'abc' is not a whole number of 0 or more; mend it, or unset it"),
        (TORCHRUN | {"RANK": "-1"}, "RANK: '-1' is not a whole number of 0 or more"),
        (TORCHRUN | {"RANK": "8"}, "RANK: 8 is not below WORLD_SIZE 8"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE: '0' is not a whole number of 1 or more"),
        (TORCHRUN | {"LOCAL_RANK": "1.0"}, "LOCAL_RANK: '1.0' is not a whole number of 0 or more"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT: 'http' is not a whole number of 1 or more"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT: 70000 is no port; name one from 1 to 65535"),
        (STEP, "MASTER_ADDR: is not set, though srun has started 4 tasks; export MASTER_ADDR and MASTER_PORT"),
        (STEP | MEET | {"SLURM_PROCID": "4"}, "SLURM_PROCID: 4 is not below SLURM_STEP_NUM_TASKS 4"),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS: 'two' is not a whole number"),
        (BATCH | {"SLURM_JOB_NUM_NODES": "2"}, "SLURM_JOB_NUM_NODES: is 2, but srun has not started this process"),
        (INTERACTIVE | {"SLURM_JOB_NUM_NODES": "2"}, "SLURM_JOB_NUM_NODES: is 2, but srun has not started this"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
         "OMPI_COMM_WORLD_SIZE: is set: mpirun has started 4 processes, which is not supported; start it with"),
        ({"PMI_RANK": "0"}, "PMI_RANK: is set: mpirun has started this process, which is not supported"),
        # mpirun starts its daemons with srun, one a node, and their variables reach its processes.
        (ONE_A_NODE | {"PMI_SIZE": "8", "PMI_RANK": "1"}, "PMI_SIZE: is set: mpirun has started 8 processes"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_by_its_variable(environment, line):
    with pytest.raises(InputError) as caught:
        read_start(environment)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("start", "processes", "is_one"),
    [(Start(), None, False), (Start(), 2, False), (Start("torchrun"), None, True), (Start("torchrun"), 2, False),
     (read_start(TORCHRUN), None, True), (read_start(ONE_A_NODE), None, True), (read_start(ONE_A_NODE), 8, False)],
)  # fmt: skip
def test_who_starts_processes_and_who_is_one(start, processes, is_one):
    assert start.is_one_of_several(processes) is is_one


def test_processes_are_not_started_by_those_of_a_launcher():
    with pytest.raises(InputError) as caught:
        read_start(STEP | MEET).is_one_of_several(4)
    assert str(caught.value) == ("--processes: is given where srun has started 4 processes; leave it out, or start one "
                                 "task a node")  # fmt: skip


@pytest.mark.parametrize(
    ("start", "seen", "gpu"),
    [(Start("srun", 3, 4, 1, "node7"), 2, 1), (Start("srun", 3, 4, 1, "node7"), 1, 0), (Start(), 8, 0),
     (read_start(TORCHRUN), 8, 1)],
)  # fmt: skip
def test_each_process_has_a_gpu_of_its_own(start, seen, gpu):
    assert start.gpu(seen) == gpu


def test_a_process_without_a_gpu_is_told():
    with pytest.raises(InputError, match="LOCAL_RANK: 1 has no GPU: 1 is seen here; start one process for each GPU"):
        read_start(TORCHRUN).gpu(1)


def test_its_variables_are_read_back():
    start = Start("torchrun", 3, 8, 1, "node7", 1234)
    assert start.variables() == TORCHRUN and read_start(start.variables()) == start


def test_what_a_real_slurm_sets_is_understood(slurm, tmp_path):
    """In the script of a job, and in the tasks of its steps."""
    ask = tmp_path / "ask.py"
    ask.write_text("import os\nfrom megatron_music.engine.launchers import read_start\nprint(read_start(os.environ))\n")
    script, log = tmp_path / "job.sh", tmp_path / "log"
    lines = ["export MASTER_ADDR=node7", *(f"{srun} {sys.executable} {ask}" for srun in ("", "srun", "srun -n 1"))]
    script.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    slurm.call("sbatch", "--wait", "--ntasks=2", f"--output={log}", str(script))
    tasks = [Start("srun", rank, 2, rank, "node7") for rank in range(2)]
    assert sorted(log.read_text().splitlines()) == sorted(map(str, [Start(note=NOTE), *tasks, Start()]))

"""Processes over two nodes, both of them this machine."""

import os
import subprocess
import sys
from pathlib import Path

from megatron_music.engine.processes import free_port
from megatron_music.exits import ExitCode


def test_all_nodes_start_again_when_one_loses_a_process(tmp_path):
    step = {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
            "SLURMD_NODENAME": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}  # fmt: skip
    command = [sys.executable, str(Path(__file__).parent / "elastic_worker.py"), str(tmp_path)]
    nodes = [subprocess.Popen(command, env=os.environ | step | {"SLURM_PROCID": str(number)}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) for number in range(2)]  # fmt: skip
    for node in nodes:
        output, error = node.communicate()
        assert (node.returncode, output) == (ExitCode.STOPPED, "as asked\n"), error
    assert (tmp_path / "killed").exists()
    assert [(tmp_path / name).read_text() for name in "01"] == ["3 of 2"] * 2

"""Running one datatrove pipeline on local processes, a SLURM array or Ray.

datatrove's own markers of finished tasks are not used to skip any (they mean something else with another number of
tasks): every pipeline here knows from its outputs what is left to do.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from megatron_music.errors import InputError
from megatron_music.parallel import Workers
from megatron_music.progress import track, watch

EXECUTORS = ("local", "slurm", "ray")
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class Machines:
    """What runs the tasks, and what each task is given.

    Attributes:
        executor: one of ``EXECUTORS``.
        tasks: parts that the work is divided into; by default enough to keep all busy.
        workers: tasks at a time; by default as many as cores (one with a GPU), or as the cluster gives.
        gpus, cpus, memory_gb: of each task, on SLURM and Ray; no memory is asked for where that is None.
        time, partition, qos, account: of the SLURM jobs; the cluster's own where None.
        environment: shell command that a SLURM job runs first; its ``python`` then runs the task, where otherwise this
            very interpreter does.
        sbatch: any further options of ``sbatch``, by name without the dashes.
        wait: whether to stay until the SLURM jobs have ended.
    """

    executor: str = "local"
    tasks: int | None = None
    workers: int | None = None
    gpus: int = 0
    cpus: int = 1
    memory_gb: float | None = None
    time: str | None = None
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    environment: str | None = None
    sbatch: Mapping[str, str] = field(default_factory=dict)
    wait: bool = False

    def check(self) -> None:
        """Raises InputError where the executor is not known or can't be had here."""
        if self.executor not in EXECUTORS:
            raise InputError(f"--executor {self.executor}", "is not known", f"name one of {', '.join(EXECUTORS)}")
        if self.executor == "slurm":
            for command in ("sbatch", "squeue"):
                if shutil.which(command) is None:
                    raise InputError(
                        "--executor slurm", f"there is no {command} on this machine", "run it on a login node"
                    )
            if "SLURM_ARRAY_TASK_ID" in os.environ:
                raise InputError("--executor slurm", "this is a task of a job array itself", "run it on a login node")
        if self.executor == "ray":
            try:
                import ray  # noqa: F401
            except ImportError as error:
                mend = "pip install 'megatron-music[ray]'"
                raise InputError(
                    "--executor ray", f"needs the package ray, which can't be imported ({error})", mend
                ) from None


def parse_sbatch_options(texts: Iterable[str]) -> dict[str, str]:
    """``NAME=VALUE`` or, of a flag, ``NAME``; dashes in front are dropped. Raises InputError on anything else."""
    options = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not re.fullmatch(r"-{0,2}[a-z][a-z-]+", name) or "\n" in value:
            raise InputError(f"--sbatch {text}", "is no option of sbatch", "write NAME=VALUE, such as exclude=node7")
        options[name.lstrip("-")] = value
    return options


def run_local(
    pipeline: Sequence[PipelineStep], tasks: int, left: Iterable[int], workers: int | None, logs: Path, what: str
) -> None:
    """Runs those tasks of ``tasks`` that are ``left`` on processes of this machine, with a progress bar.

    The tasks are datatrove's, the processes are not: its pool waits for ever for a worker that was killed.

    Raises what a task raises, and InputError where a worker was killed.
    """
    left = list(left)
    with Workers(workers) as pool:
        executor = LocalPipelineExecutor(list(pipeline), tasks, pool.processes, str(logs), skip_completed=False)
        for _ in track(pool.map(partial(_run_task, executor), left), what, total=len(left)):
            pass


def _run_task(executor: LocalPipelineExecutor, task: int) -> None:
    with _quiet():
        # Steps count what they do, each task for itself. A local rank of 0 would log to the terminal.
        deepcopy(executor)._run_for_rank(task, local_rank=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps datatrove's log, with the traceback of every error, away from the terminal."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


def run_ray(pipeline: Sequence[PipelineStep], tasks: int, machines: Machines, logs: Path, what: str) -> None:
    """Runs all tasks on the Ray cluster that ``RAY_ADDRESS`` names, or on one that is started on this machine.

    Ray and datatrove log errors and go on; which tasks have ended well stands in ``logs/completions``.
    """
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    with _quiet():
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level="error")
        try:
            executor = RayPipelineExecutor(
                list(pipeline),
                tasks=tasks,
                workers=machines.workers or -1,
                logging_dir=str(logs),
                skip_completed=False,
                cpus_per_task=machines.cpus,
                gpus_per_task=machines.gpus,
                mem_per_cpu_gb=(machines.memory_gb or 0) / machines.cpus,
            )
            with watch(partial(_completed, logs), what, tasks):
                executor.run()
        finally:
            ray.shutdown()


def _completed(logs: Path) -> int:
    return len(list((logs / "completions").glob("*")))


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's executor with the cluster's own defaults, this interpreter, and no third job to add up statistics."""

    def __init__(
        self, pipeline: Sequence[PipelineStep], tasks: int, machines: Machines, logs: Path, name: str, **further: object
    ):
        super().__init__(
            list(pipeline),
            tasks=tasks,
            time=machines.time,
            partition=machines.partition,
            cpus_per_task=machines.cpus,
            gpus_per_task=machines.gpus,
            qos=machines.qos,
            env_command=machines.environment,
            sbatch_args=dict(machines.sbatch) | {"account": machines.account},
            workers=machines.workers or -1,
            job_name=name,
            logging_dir=str(logs),
            skip_completed=False,
            job_id_retriever=_job_id,
            with_srun=False,
            **further,
        )
        self.memory_gb = machines.memory_gb
        self.python = "python" if machines.environment else sys.executable

    def get_sbatch_args(self, max_array: int = 1) -> dict:
        """Only what was asked for: a partition's or cluster's own default stands where nothing was."""
        args = super().get_sbatch_args(max_array)
        del args["mem-per-cpu"]
        if self.memory_gb is not None:
            args["mem"] = f"{round(self.memory_gb * 1024)}M"
        quoted = {name: f'"{value}"' if " " in str(value) else value for name, value in args.items()}
        return {name: value for name, value in quoted.items() if value is not None}

    def get_launch_file_contents(self, sbatch_args: dict, run_script: str) -> str:
        """Starts the task with a known interpreter, in place of a command that may not be on the path of a job."""
        task = [self.python, "-m", "megatron_music.corpus.slurm_task", self.logging_dir.resolve_paths("executor.pik")]
        return super().get_launch_file_contents(sbatch_args, shlex.join(task))

    def launch_merge_stats(self) -> None:
        """No job of its own for a sum of statistics."""


def _job_id(output: str) -> str:
    return re.findall(r"Submitted batch job (\d+)", output)[-1]


def submit_slurm(
    pipeline: Sequence[PipelineStep],
    last: PipelineStep,
    tasks: int,
    machines: Machines,
    logs: Path,
    name: str,
) -> tuple[str, str]:
    """Submits an array of ``tasks`` and a job that runs ``last`` once they have ended; returns the ids of both.

    Raises InputError where sbatch refuses them.
    """
    array = SlurmExecutor(pipeline, tasks, machines, logs / "tasks", name)
    small = Machines(**{**vars(machines), "gpus": 0, "cpus": 1, "memory_gb": None, "workers": None})
    end = SlurmExecutor([last], 1, small, logs / "finish", f"{name}-finish", depends=array, run_on_dependency_fail=True)
    try:
        with _quiet():
            end.launch_job()
    except subprocess.CalledProcessError as error:
        mend = "mend the options that it names above, or set them with --sbatch NAME=VALUE"
        raise InputError("sbatch", f"refused the job (status {error.returncode})", mend) from None
    return array.job_id, end.job_id


def jobs_in_queue(name: str, logs: Path) -> list[str]:
    """Ids of the jobs of ``submit_slurm`` with this name that wait or run; none where it never wrote to ``logs``.

    The last one comes first: cancelled in this order, it does not start once those that it waits for are gone.
    """
    if not (logs / "tasks" / "launch_script.slurm").is_file() or shutil.which("squeue") is None:
        return []
    command = ["squeue", "--noheader", "--format=%A", f"--name={name},{name}-finish"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError("squeue", f"does not answer ({done.stderr.strip()})", "try again once the cluster does")
    return sorted(set(done.stdout.split()), key=int, reverse=True)


def wait_for_jobs(name: str, tasks: int, logs: Path, what: str) -> None:
    """Returns once none of the jobs of ``submit_slurm`` is left in the queue."""
    pause_seconds = 0.5
    with watch(partial(_completed, logs / "tasks"), what, tasks):
        while jobs_in_queue(name, logs):
            time.sleep(pause_seconds)
            pause_seconds = min(1.5 * pause_seconds, _LONGEST_PAUSE_SECONDS)

"""Submitting a recipe to SLURM: one readable sbatch file, checked before, and a record of code and environment."""

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_text, write_json, write_text
from megatron_music.recipe.recipe import Recipe
from megatron_music.training.run import check

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "slurm" / "train.sbatch.j2"
SUBMITTED = "submitted"
"""Folder in a run: what was submitted, and with which code and environment."""
PHASES = ("one", "chain")
MOST_REQUEUES = 100
_VARIABLES = re.compile(r"(NCCL|GLOO|UCX|CUDA|TORCH|NVTE|OMP|PYTHON|LD_LIBRARY|SLURM|VIRTUAL_ENV|CONDA)\w*")


@dataclass(frozen=True)
class Job:
    """What a job is given.

    Attributes:
        processes: on each node; one for each GPU.
        sbatch: any further options of ``sbatch``, by name without the dashes.
        environment: shell command that sets up `python` in the job; this very interpreter where there is none.
        container: image that srun's ``--container-image`` (pyxis) starts, with its own `python`.
        mounts: folders that the container sees.
        restarts: of the run in the job, as ``train``'s.
        grace_seconds: between the signal and the time limit.
    """

    nodes: int
    gpus_per_node: int = 8
    processes: int | None = None
    sbatch: Mapping[str, str] = field(default_factory=dict)
    environment: str | None = None
    container: str | None = None
    mounts: Sequence[Path] = ()
    restarts: int = 3
    grace_seconds: int = 300

    @property
    def processes_per_node(self) -> int:
        """As many as GPUs where no number is named."""
        return self.processes or max(1, self.gpus_per_node)


def parse_options(texts: Sequence[str], **named: str | None) -> dict[str, str]:
    """Options of sbatch by name, of ``NAME=VALUE`` or ``NAME`` texts and those ``named`` that are not None."""
    from megatron_music.corpus.executors import parse_sbatch_options

    return {name: value for name, value in named.items() if value is not None} | parse_sbatch_options(texts)


def submit(recipe: Recipe, job: Job, phases: str = "one", dry_run: bool = False) -> str:
    """Submits ``recipe``; returns what to tell: the file where ``dry_run``, which writes nothing, else the jobs.

    The resolved recipe lies beside the file in the run folder: a later change of the recipe's file does not reach a job
    that waits.

    Args:
        phases: ``one`` job for all, or a ``chain``, a job for each once the one before has ended.

    Raises:
        InputError: recipe, corpus, layout and nodes do not fit, there is no sbatch, or it refuses the job.
    """
    if phases not in PHASES:
        raise InputError("--phases", f"{phases!r} is not known", f"name one of {', '.join(PHASES)}")
    if not dry_run and shutil.which("sbatch") is None:
        mend = "run it on a login node, or look at the file with --dry-run"
        raise InputError("submit", "there is no sbatch on this machine", mend)
    check(recipe, job.nodes * job.processes_per_node, on_this_machine=False)
    folder = recipe.run / SUBMITTED
    text = render(recipe, job, folder)
    if dry_run:
        return text
    recipe.save(folder / "recipe.yaml")
    write_text(folder / "train.sbatch", text)
    record(folder)
    parts = [["--until", phase.name] for phase in recipe.phases] if phases == "chain" else [[]]
    told, before = [f"{folder / 'train.sbatch'}"], None
    for part in parts:
        before = _sbatch(folder / "train.sbatch", part, before)
        told.append(f"job {before}{': until the end of ' + part[1] if part else ''}; log: {folder / before}.log")
    return "\n".join(told)


def render(recipe: Recipe, job: Job, folder: Path, title: str = "", notes: Sequence[str] = (), cwd: str = "") -> str:
    """The sbatch file of a recipe that lies in ``folder``."""
    import jinja2

    options = {"gpus-per-node": job.gpus_per_node} if job.gpus_per_node else {}
    options |= {"exclusive": "", "mem": "0"} | dict(job.sbatch)
    container = ""
    if job.container is not None:
        mounts = ",".join(dict.fromkeys(f"{path}:{path}" for path in (ROOT, recipe.corpus, recipe.run, *job.mounts)))
        container = f" --container-image={shlex.quote(job.container)} --container-mounts={shlex.quote(mounts)}"
    own_python = job.environment is None and job.container is None
    template = jinja2.Template(read_text(TEMPLATE), undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return template.render(
        title=title or recipe.name,
        notes=notes,
        name=re.sub(r"\W+", "-", recipe.name),
        nodes=job.nodes,
        processes=job.processes_per_node,
        options=[f"{name}={value}" if value != "" else name for name, value in options.items()],
        log=folder / "%j.log",
        grace_seconds=job.grace_seconds,
        folder=shlex.quote(cwd or str(Path.cwd())),
        environment=job.environment,
        container=container,
        python=shlex.quote(sys.executable) if own_python else "python",
        run=shlex.quote(str(recipe.run)),
        recipe=shlex.quote(str(folder / "recipe.yaml")),
        restarts=job.restarts,
        most_requeues=MOST_REQUEUES,
    )


def record(folder: Path) -> None:
    """Writes ``code.json`` (and ``code.patch`` of what is not committed) and ``environment.txt`` into ``folder``."""
    commit = _git("rev-parse", "HEAD").strip() or None
    changed = _git("status", "--porcelain").splitlines()
    version = importlib.metadata.version("megatron-music")
    write_json(folder / "code.json", {"version": version, "commit": commit, "changed": changed})
    if changed:
        write_text(folder / "code.patch", _git("diff", "HEAD"))
    packages = sorted(f"{package.name}=={package.version}" for package in importlib.metadata.distributions())
    variables = sorted(f"{name}={value}" for name, value in os.environ.items() if _VARIABLES.fullmatch(name))
    lines = [f"# Python {platform.python_version()}, {sys.executable}", *packages, "", *variables]
    write_text(folder / "environment.txt", "\n".join(lines) + "\n")


def _git(*arguments: str) -> str:
    """Output of a git command about this code; nothing where it is no checkout, or there is no git."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def _sbatch(file: Path, arguments: Sequence[str], before: str | None) -> str:
    command = ["sbatch", "--parsable", *([f"--dependency=afterok:{before}"] if before else []), str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            "sbatch", f"refused the job ({done.stderr.strip()})", "set its options with --sbatch NAME=VALUE"
        )
    return done.stdout.strip().partition(";")[0]

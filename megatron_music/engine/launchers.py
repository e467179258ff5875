"""Who started this process: what torchrun, srun, mpirun, or a shell that one of them left behind, say about it.

What they set, as tried on a SLURM of one node (22.05):

| process | SLURM_NTASKS | SLURM_PROCID | SLURM_STEP_NUM_TASKS | SLURM_STEP_ID |
| --- | --- | --- | --- | --- |
| a task of ``srun -n 2`` | 2 | 0 or 1 | 2 | 0, 1, ... |
| an sbatch script of ``-n 2`` | 2 | 0 | not set, or that of a step in which sbatch was called | as that |
| a shell of ``salloc -n 2`` | 2 | not set | not set | not set |
| the same with ``LaunchParameters=use_interactive_step`` | 2 | 0 | 1 | 4294967290 |

So a task of srun is one whose step has as many tasks as SLURM_NTASKS says, and no interactive one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_music.errors import InputError

DEFAULT_PORT = 29_500
"""torchrun's own, where MASTER_PORT is not set."""

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Set by torchrun: its agent holds the store in which processes meet."""

_INTERACTIVE_STEP = 0xFFFF_FFFA
_OF_MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
)
_ADDRESS_MEND = "export MASTER_ADDR and MASTER_PORT, of the machine of process 0, in the sbatch file"


@dataclass(frozen=True)
class Start:
    """How this process was started.

    Attributes:
        by: ``torchrun`` (or whoever sets RANK and WORLD_SIZE), ``srun``, or None where nothing has.
        rank, size, local_rank: this process among those that were started together, and on its machine.
        address, port: where they meet; without an address where it is one alone.
        nodes: on each of which srun has started one task; 1 otherwise.
        restart: of torchrun, which keeps its store over all restarts on one node; None where each has its own.
        agent_store: whether torchrun's agent holds the store, and not process 0.
        note: what whoever watches should know: what is set, and is not followed.
    """

    by: str | None = None
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str | None = None
    port: int = DEFAULT_PORT
    nodes: int = 1
    restart: str | None = None
    agent_store: bool = False
    note: str | None = None

    def is_one_of_several(self, processes: int | None) -> bool:
        """Whether this is one of a launcher's processes, and not the one that starts ``processes`` on its machine.

        Raises InputError where it should be both.
        """
        if self.by is None:
            return False
        if processes is None:
            return True
        if self.size == 1 or self.nodes > 1:
            return False
        raise InputError("--processes", f"is given where {self.by} has started {self.size} processes",
                         "leave it out, or start one task a node")  # fmt: skip

    def gpu(self, seen: int) -> int:
        """The number of this process' GPU among the ``seen`` ones; raises InputError where it has none.

        Where srun binds each task to a GPU of its own (``--gpus-per-task``) the task sees that one alone, as the first.
        """
        if self.by == "srun" and seen == 1:
            return 0
        if self.local_rank >= seen:
            what = f"{self.local_rank} has no GPU: {seen} {'is' if seen == 1 else 'are'} seen here"
            raise InputError("LOCAL_RANK", what, "start one process for each GPU")
        return self.local_rank

    def variables(self) -> dict[str, str]:
        """As torchrun gives them to its processes; libraries read them too."""
        values = {"RANK": self.rank, "WORLD_SIZE": self.size, "LOCAL_RANK": self.local_rank}
        values |= {"MASTER_ADDR": self.address, "MASTER_PORT": self.port}
        return {name: str(value) for name, value in values.items() if value is not None}


def read_start(environment: Mapping[str, str]) -> Start:
    """Reads who started the process that has this environment; a variable that is empty counts as not set.

    Raises:
        InputError: naming the variable that is no number, does not fit the others or is missing; for mpirun, whose
            processes could not find each other; and for a job of several nodes in which nothing called srun.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    if "RANK" in given:
        return _by_torchrun(given)
    task = _srun_task(given)
    _refuse_mpi(given, task)
    if task is None:
        return _unstarted(given)
    rank, size, nodes = task
    if size == 1:
        return Start()
    local_rank = _number(given, "SLURM_LOCALID", 0)
    return Start("srun", rank, size, local_rank, *_place(given, f"srun has started {size} tasks"),
                 nodes if nodes == size else 1)  # fmt: skip


def _by_torchrun(given: Mapping[str, str]) -> Start:
    unset = "unset RANK, which something has left behind, or start this with torchrun"
    rank = _number(given, "RANK")
    if "WORLD_SIZE" not in given:
        raise InputError("WORLD_SIZE", f"is not set, though RANK is {rank}", unset)
    size, local_rank = _number(given, "WORLD_SIZE", least=1), _number(given, "LOCAL_RANK", 0)
    if rank >= size:
        raise InputError("RANK", f"{rank} is not below WORLD_SIZE {size}", unset)
    if size == 1:
        # It meets nobody, so it needs no address, and no torchrun that still runs.
        note = "RANK and WORLD_SIZE=1 are set: this is one process alone; unset them, or name --processes, for more"
        return Start("torchrun", 0, 1, local_rank, note=None if "TORCHELASTIC_RUN_ID" in given else note)
    agent_store, on_one_node = given.get(AGENT_STORE) == "True", given.get("GROUP_WORLD_SIZE") == "1"
    restart = given.get("TORCHELASTIC_RESTART_COUNT", "0") if agent_store and on_one_node else None
    where = _place(given, f"RANK is {rank} and WORLD_SIZE {size}", f"or {unset}")
    return Start("torchrun", rank, size, local_rank, *where, restart=restart, agent_store=agent_store)


def _srun_task(given: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Rank, number of tasks and of nodes, where srun has started this process."""
    if "SLURM_STEP_NUM_TASKS" not in given or "SLURM_PROCID" not in given:
        return None
    tasks = _number(given, "SLURM_STEP_NUM_TASKS", least=1)
    is_interactive = _number(given, "SLURM_STEP_ID", 0) == _INTERACTIVE_STEP
    if is_interactive or _number(given, "SLURM_NTASKS", tasks) != tasks:
        return None
    rank = _number(given, "SLURM_PROCID")
    if rank >= tasks:
        raise InputError("SLURM_PROCID", f"{rank} is not below SLURM_STEP_NUM_TASKS {tasks}", "unset both")
    return rank, tasks, _number(given, "SLURM_STEP_NUM_NODES", 1)


def _refuse_mpi(given: Mapping[str, str], task: tuple[int, int, int] | None) -> None:
    """Each of mpirun's processes would train alone; srun sets PMI's variables too, with its own numbers."""
    for size_name, rank_name in _OF_MPI:
        if size_name not in given and rank_name not in given or given.get(size_name) == "1":
            continue
        if task is not None and (given.get(rank_name), given.get(size_name)) == (str(task[0]), str(task[1])):
            continue
        count = f"{given[size_name]} processes" if size_name in given else "this process"
        name = size_name if size_name in given else rank_name
        mend = f"start it with torchrun or srun, or alone with --processes; or unset {name}"
        raise InputError(name, f"is set: mpirun has started {count}, which is not supported", mend)


def _unstarted(given: Mapping[str, str]) -> Start:
    """Of a process that no launcher has started; it may be the script of a job, which holds more than itself."""
    tasks = _number(given, "SLURM_NTASKS", 1)
    nodes = _number(given, "SLURM_JOB_NUM_NODES", _number(given, "SLURM_NNODES", 1))
    if nodes > 1:
        raise InputError("SLURM_JOB_NUM_NODES", f"is {nodes}, but srun has not started this process: it would leave "
                         "the other nodes idle", "start it with srun, one task a node or one a process")  # fmt: skip
    if tasks > 1:
        note = f"SLURM has allotted {tasks} tasks, and srun has not started this process: it uses this machine alone"
        return Start(note=f"{note}; start it with srun to be one of them")
    return Start()


def _place(given: Mapping[str, str], why: str, mend: str = "") -> tuple[str, int]:
    if "MASTER_ADDR" not in given:
        raise InputError("MASTER_ADDR", f"is not set, though {why}", f"{_ADDRESS_MEND} {mend}".strip())
    port = _number(given, "MASTER_PORT", DEFAULT_PORT, least=1)
    if port > 65_535:
        raise InputError("MASTER_PORT", f"{port} is no port", "name one from 1 to 65535")
    return given["MASTER_ADDR"], port


def _number(given: Mapping[str, str], name: str, default: int | None = None, least: int = 0) -> int:
    text = given.get(name, default)
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < least:
        raise InputError(name, f"{text!r} is not a whole number of {least} or more", "mend it, or unset it")
    return number

"""A SLURM of one node, of real daemons in a folder of their own, for tests of what is submitted to one."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "scontrol")
_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])  # where the daemons are
_CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
# A job that was requeued begins so many seconds later.
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=5
NodeName=localhost NodeAddr=127.0.0.1 {hardware} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> object:
    """The first true value of ``condition``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)  # asking takes a core from what is waited for
    return value


def skip_without_slurm() -> None:
    """Skips where SLURM is not installed; in continuous integration, which installs it, that is a failure."""
    missing = [command for command in COMMANDS if shutil.which(command, path=_PATH) is None]
    if missing:
        why = f"SLURM is not installed (apt-get install slurm-wlm munge): there is no {', '.join(missing)}"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


class OneNodeSlurm:
    """munged, slurmctld and slurmd as the user who runs the tests; jobs find them by ``SLURM_CONF``.

    Attributes:
        configuration: the file that ``SLURM_CONF`` has to name.
    """

    def __init__(self):
        # A socket's path has at most 108 characters: pytest's own folders may be too deep.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.configuration = self.folder / "slurm.conf"
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Starts the daemons and returns once the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        # CPUs=2 Boards=1 ...: what a node has is taken from it, since one that has less than it says gets no jobs.
        hardware = self.call("slurmd", "-C").split("\n")[0].partition(" ")[2]
        self.configuration.write_text(
            _CONFIGURATION.format(
                user=self.call("id", "-un").strip(), ports=_free_ports(2), folder=self.folder, hardware=hardware
            )
        )
        files = {
            "socket": "munge.socket",
            "log-file": "munged.log",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
        }
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *options)
        wait_until((self.folder / "munge.socket").exists, "munged's socket")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", "localhost")
        wait_until(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"), "an idle node")

    def call(self, *command: str) -> str:
        """Standard output of a command of SLURM."""
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment())
        return done.stdout

    def queue(self) -> list[str]:
        """Ids of the jobs and array tasks that wait or run."""
        return self.call("squeue", "--noheader", "--array", "--format=%i").split()

    def clear(self) -> None:
        """Cancels all jobs and returns once they are gone."""
        if left := self.queue():
            self.call("scancel", *left)
            wait_until(lambda: not self.queue(), "an empty queue")

    def stop(self) -> None:
        """Ends the daemons and removes their files; the log of one that could not start is shown."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "wb") as output:
            daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment()
            )
        self._daemons.append(daemon)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.configuration), "PATH": _PATH}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports

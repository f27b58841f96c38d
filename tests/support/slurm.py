"""A SLURM of one node for a test: the real daemons on free ports, in a folder, without root."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.harness.command import tool
from server.ports import free_port
from support.common import with_tools

PATIENCE = 180.0
"""Seconds that a test waits for jobs."""
DONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
# config_overrides: as many processors as it says, whatever the machine has. cred_expire: so long does a job that is
# requeued wait. NoInAddrAny: the daemons listen at
# the address of this machine's name alone.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
KillWait=10
NodeName=node NodeHostname={host} NodeAddr={address} CPUs=2 RealMemory={memory}
PartitionName=all Nodes=node Default=YES
"""


class Slurm:
    """A cluster as a context manager. At the end it and all of its jobs are gone.

    `env` is the environment of a shell on it. Jobs print to job-ID.out in its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = with_tools() | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Slurm:
        self._configure()
        munge = {name: self.folder / f"munge.{name}" for name in ("socket", "key", "pid", "seed", "log")}
        subprocess.run([tool("mungekey"), "--create", f"--keyfile={munge['key']}"], check=True, timeout=60)
        files = [f"--{option}={munge[option.split('-')[0]]}" for option in ("socket", "key-file", "pid-file")]
        files += [f"--seed-file={munge['seed']}", f"--log-file={munge['log']}"]
        try:
            # It wants folders that all users can enter, which those of a test are not: --force.
            self._start("munged", "--foreground", "--force", *files)
            self.wait_until(munge["socket"].exists, "munged has made no socket")
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D", "-N", "node", "-d", tool("slurmstepd"))
            self.wait_until(self._is_up, "the node is not idle")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # First the jobs: the process that looks after a job does not end before it has told the cluster.
            if self._ask("scancel", f"--user={getpass.getuser()}").returncode == 0:
                self.wait_until(lambda: not self._ask("squeue", "--noheader").stdout, "jobs do not end")
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                processes = self.processes()
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(number)
                psutil.wait_procs(processes, timeout=20)

    def _configure(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        name = socket.gethostname()
        address = socket.gethostbyname(name)
        text = CONFIGURATION.format(
            host=name.split(".")[0],
            address=address,
            controller_port=free_port(address),
            node_port=free_port(address),
            user=getpass.getuser(),
            folder=self.folder,
            memory=psutil.virtual_memory().total // 2**20,
        )
        plugins = Path(tool("slurmctld")).with_name("slurmctld.debian")  # of fetch_debian.sh
        if plugins.is_dir():
            text += f"PluginDir={plugins}\n"
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, program: str, *options: str) -> None:
        with open(self.folder / f"{program}.out", "w") as log:
            subprocess.Popen([tool(program), *options], env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def _is_up(self) -> bool:
        return " State=IDLE " in self._ask("scontrol", "show", "node", "--oneliner").stdout

    def _ask(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [tool(words[0]), *words[1:]]
        return subprocess.run(command, env=self.env | env, capture_output=True, text=True, timeout=60, check=False)

    def command(self, *words: object, **env: str) -> str:
        """What `squeue` or another command prints; fails if it fails. It runs where the test runs, with `env` too."""
        done = self._ask(*map(str, words), **env)
        assert done.returncode == 0, self.story(f"{words}: {done.stderr}")
        return done.stdout

    def submit(self, *words: object, **env: str) -> str:
        """`sbatch` with those words; returns the job's id."""
        output = f"--output={self.folder}/job-%j.out"
        return self.command("sbatch", "--parsable", output, *words, **env).strip()

    def states(self, job: str) -> dict[str, str]:
        """The states of the tasks of an array by their indices; of another job, of "N/A"."""
        lines = self.command("squeue", "--array", "--noheader", "--states=all", f"--jobs={job}", "--format=%K %T")
        return dict(line.split() for line in lines.splitlines())

    def wait(self, job: str) -> dict[str, str]:
        """The states when all tasks are done."""
        self.wait_until(lambda: DONE.issuperset(self.states(job).values()), f"job {job} has not ended")
        return self.states(job)

    def wait_until(self, holds: Callable[[], bool], otherwise: str) -> None:
        """Returns once `holds` does; fails with the words `otherwise` when PATIENCE is over."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, self.story(otherwise)
            time.sleep(0.1)

    def processes(self, **env: str) -> list[psutil.Process]:
        """The daemons and all processes of jobs, or those that have `env` in their environment.

        Not slurmstepd, which looks after a job: it has overwritten its environment.
        """
        wanted = {"SLURM_CONF": self.env["SLURM_CONF"], **env}.items()
        return [process for process in psutil.process_iter() if wanted <= _environment(process).items()]

    def story(self, what: str) -> str:
        """For the message of a failure: what happened, and what the daemons and the jobs have printed."""
        texts = [f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.glob("*.out")]
        return "\n".join([what, *sorted(texts)])


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.pid != os.getpid() else {}
    except psutil.Error:  # it has ended, or is of another user
        return {}

"""A real SLURM cluster on this machine: munge, controller and four nodes on loopback, without systemd or cgroups.

    python tests/cluster/cluster.py start FOLDER    # prints the two variables to set in the shell
    python tests/cluster/cluster.py stop FOLDER     # ends the daemons that `start` started, nothing else

Nodes c1 and c2 form the partition `cpu`; g1 and g2, with fake GPUs (character devices that exist everywhere), `gpu`.
Everything lies in FOLDER, the ports are free ones, /etc/slurm is left alone. Jobs over their memory are killed (by
sampling it). The size of a node (--cpus, --memory-mb, --gpus) is what SLURM believes, not what this machine has.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("c1", "c2", "g1", "g2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
FAKE_GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")

SLURM_CONF = """\
ClusterName=medsyn
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
{communication}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=10
KillWait=30
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=UsePss,OverMemoryKill
GresTypes=gpu
{nodes}
PartitionName=cpu Nodes=c1,c2 Default=YES State=UP
PartitionName=gpu Nodes=g1,g2 State=UP
"""
LOOPBACK_ONLY = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"  # listens at the address of this host's name
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} Boards=1 SocketsPerBoard=1"
    " CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}{gres} State=UNKNOWN"
)
GRES_CONF = "AutoDetect=off\nNodeName=g1,g2 Name=gpu Type=fake File={devices}\n"


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if not _program(name)]
    if absent:
        return (
            f"SLURM is not installed ({', '.join(absent)} missing): apt-get install slurmctld slurmd slurm-client munge"
        )
    return "" if os.geteuid() == 0 else "only root can start SLURM's daemons for tests"


class Cluster:
    """The daemons of one folder; a node has `cpus`, `memory_mb` and, if it is one of the GPU nodes, `gpus` (1 to 4)."""

    def __init__(self, folder: Path, cpus: int = 8, memory_mb: int = 16_000, gpus: int = 2) -> None:
        self.folder = folder.resolve()
        self.cpus, self.memory_mb, self.gpus = cpus, memory_mb, gpus
        # The executor drops SLURM_CONF inside a job, hence commands that set it again, first on PATH.
        self.variables = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}",
        }
        self.environment = os.environ | self.variables

    def start(self) -> None:
        """Write the configuration, start every daemon and wait until all nodes are idle."""
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {name: f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")}
        self._daemon(
            *("munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket", "--num-threads=2"),
            *files.values(),
        )
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_until(
            lambda: self.node_states() == dict.fromkeys(NODES, "idle"), 60, f"idle nodes, see {self.folder}/*.log"
        )

    def stop(self) -> None:
        """Cancel all jobs and end the daemons that were started from this folder."""
        if self._pid("slurmctld"):
            self.call("scancel", "--user", "root", check=False)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not self.call("squeue", "--noheader", check=False), 40, "an empty queue")
        for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"):
            self._end(name, signal.SIGTERM)

    def start_controller(self) -> None:
        """Start (again) the controller; it goes on from its saved state."""
        self._daemon("slurmctld")

    def stop_controller(self) -> None:
        """End the controller; jobs go on running."""
        self._end("slurmctld", signal.SIGTERM)

    def start_node(self, node: str) -> None:
        """Start (again) a node's daemon."""
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self._daemon("slurmd", "-N", node)

    def crash_node(self, node: str) -> None:
        """What a power cut does: SIGKILL to the daemon of a node and to every process of the jobs on it.

        All are stopped first: none starts a job or lives to report another's death.
        """
        daemon = self._pid(f"slurmd.{node}")
        if daemon is None:
            raise RuntimeError(f"{node}: its daemon does not run")
        os.kill(daemon, signal.SIGSTOP)
        jobs = self.call(
            "squeue", "--noheader", "--array", "--states=running", f"--nodelist={node}", "--format=%A"
        ).split()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in _descendants(f"slurmstepd: [{job}." for job in jobs):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._end(f"slurmd.{node}", signal.SIGKILL)

    def call(self, *command: str, check: bool = True) -> str:
        """Output of one of SLURM's commands."""
        run = subprocess.run(command, env=self.environment, capture_output=True, encoding="utf-8", check=False)
        if check and run.returncode:
            raise RuntimeError(f"{' '.join(command)}: {run.stderr.strip()}")
        return run.stdout.strip()

    def node_states(self) -> dict[str, str]:
        """Node -> state."""
        lines = self.call("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
        return dict(line.split() for line in lines)

    def jobs(self) -> list[dict[str, str]]:
        """All jobs, ended ones too: id, state, node, rule (with wildcards), memory and time used."""
        lines = self.call("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%k|%m|%M").splitlines()
        keys = ("id", "state", "node", "rule", "memory", "time")
        return [dict(zip(keys, line.split("|"), strict=True)) for line in lines]

    def _configure(self) -> None:
        host = socket.gethostname()
        port = _free_ports(1 + len(NODES))
        nodes = [
            NODE.format(
                name=name,
                host=host,
                port=next(port),
                cpus=self.cpus,
                memory=self.memory_mb,
                gres=f" Gres=gpu:fake:{self.gpus}" if name.startswith("g") else "",
            )
            for name in NODES
        ]
        values = {
            "host": host,
            "folder": self.folder,
            "communication": LOOPBACK_ONLY if _address(host) == "127.0.0.1" else "",
            "controller_port": next(port),
            "nodes": "\n".join(nodes),
        }
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values), encoding="utf-8")
        devices = ",".join(FAKE_GPUS[: self.gpus])
        (self.folder / "gres.conf").write_text(GRES_CONF.format(devices=devices), encoding="utf-8")
        for name in ("srun", "scontrol"):
            command = self.folder / "bin" / name
            command.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {_program(name)} "$@"\n')
            command.chmod(0o755)

    def _daemon(self, name: str, *options: str) -> None:
        """All of SLURM's daemons put themselves into the background."""
        run = subprocess.run(
            [_program(name) or name, *options], env=self.environment, capture_output=True, encoding="utf-8", check=False
        )
        if run.returncode:
            raise RuntimeError(f"{name} did not start: {run.stderr.strip()}")

    def _pid(self, name: str) -> int | None:
        """Process id of a daemon, if its file is there and the process is (still) that daemon and no zombie."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
            program, _, state = Path(f"/proc/{pid}/stat").read_text().partition(" (")[2].partition(") ")
        except (OSError, ValueError):
            return None
        return pid if program == name.split(".")[0] and state[0] != "Z" else None

    def _end(self, name: str, number: signal.Signals) -> None:
        pid = self._pid(name)
        if pid is None:
            return
        os.kill(pid, number)
        try:
            wait_until(lambda: self._pid(name) is None, 20, f"the end of {name}")
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return when `condition` holds; TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _free_ports(number: int) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    return iter(ports)


def _descendants(titles: Iterator[str]) -> list[int]:
    """Processes whose command line begins with one of `titles`, and all their children."""
    wanted = tuple(titles)
    children: dict[int, list[int]] = {}
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
            if wanted and (folder / "cmdline").read_bytes().decode(errors="replace").startswith(wanted):
                found.append(int(folder.name))
    for pid in found:
        found.extend(child for child in children.get(pid, []) if child not in found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", type=int, default=8)
    parser.add_argument("--memory-mb", type=int, default=16_000)
    parser.add_argument("--gpus", type=int, default=2, choices=range(1, len(FAKE_GPUS) + 1))
    arguments = parser.parse_args()
    cluster = Cluster(arguments.folder, arguments.cpus, arguments.memory_mb, arguments.gpus)
    if arguments.action == "stop":
        cluster.stop()
        return
    if reason := missing():
        sys.exit(reason)
    cluster.start()
    for name in cluster.variables:
        print(f"export {name}='{cluster.variables[name]}'")


if __name__ == "__main__":
    main()

"""Run under a cluster's scheduler: check the executor, find its commands, requeue a job."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from medsyn.errors import InputError
from medsyn.progress import log

LEAST_PLUGINS = {"slurm": Version("2.8.0")}
"""Executor -> the oldest version of its plugin that the workflow has been run with. Version 2.6.1 of slurm starts a job
with several GPUs once per GPU."""
_PATIENCE_S = 60


def check_executor(name: str) -> None:
    """Raise InputError if the plugin of the executor `name` is older than the workflow needs."""
    least = LEAST_PLUGINS.get(name)
    if least is None:
        return
    package = f"snakemake-executor-plugin-{name}"
    found = metadata.version(package)
    if Version(found) < least:
        raise InputError(
            f"{package} {found} is too old: expected {least} or newer; pip install '{package}>={least}', or use the"
            " environment of `make env`"
        )


def prefer_commands(folder: Path, *, scheduler: str) -> None:
    """Put `folder` first on PATH, for this process and its jobs, where the command `scheduler` exists."""
    path = os.environ.get("PATH", "")
    if shutil.which(scheduler) and str(folder) not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([str(folder), path])


def requeue_job() -> bool:
    """Ask SLURM to start this process's job again under its id, and return whether it will; outside SLURM do nothing.

    Only a running job is requeued: one that was cancelled, or that SLURM ends or requeues already, is left alone.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    state = re.search(r"JobState=(\S+)", _scontrol("show", "job", "--oneliner", job).stdout)
    if state is None or state[1] != "RUNNING":
        return False
    asked = _scontrol("requeue", job)
    if asked.returncode:
        log.warning("SLURM does not requeue job %s (%s): this end counts as a failure", job, asked.stderr.strip())
        return False
    log.warning("job %s is requeued: it made progress and has not finished", job)
    return True


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *words]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))

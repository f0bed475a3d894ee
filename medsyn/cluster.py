"""Running under a cluster's scheduler."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def prefer_commands(folder: Path, *, scheduler: str) -> None:
    """Put `folder` first on PATH, for this process and its jobs, where the command `scheduler` exists."""
    path = os.environ.get("PATH", "")
    if shutil.which(scheduler) and str(folder) not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([str(folder), path])

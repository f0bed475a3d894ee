"""TensorBoard event files beside the metrics table, where the package tensorboard is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsyn.progress import log


class Events:
    """Scalars of a run by step in `folder`; without the package tensorboard nothing is written, after one log line."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: where the run starts or resumes; what an interrupted run wrote from there on is hidden."""
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info("train.tensorboard: the package tensorboard is not installed, no event files are written")
            return
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Write the numbers of a metrics row."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()

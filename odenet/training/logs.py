"""Logs of a run for people and tools: CSV and TensorBoard, through Fabric's loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from odenet.training.history import EpochRecord, History, numbers


class Logs:
    """`logs/csv/metrics.csv` and `logs/tensorboard/` in a run's folder.

    Args:
        folder: the run's folder.
        done: epochs that an earlier, interrupted run completed.
    """

    def __init__(self, folder: Path, done: History):
        # Fabric's CSV logger cannot append to the file of an earlier process, so that is written anew
        (folder / "logs" / "csv" / "metrics.csv").unlink(missing_ok=True)
        self._csv = CSVLogger(folder, name="logs", version="csv", flush_logs_every_n_steps=1)
        self._tensorboard = TensorBoardLogger(folder, name="logs", version="tensorboard", purge_step=len(done) + 1)
        for record in done:
            self._csv.log_metrics(_metrics(record), record["epoch"])

    def add(self, record: EpochRecord) -> None:
        """Log an epoch."""
        for logger in (self._csv, self._tensorboard):
            logger.log_metrics(_metrics(record), record["epoch"])
        self._tensorboard.save()

    def close(self) -> None:
        """Write out what is buffered."""
        for logger in (self._csv, self._tensorboard):
            logger.finalize("success")


def _metrics(record: EpochRecord) -> Any:  # the two loggers disagree on the type of a metric
    return {
        name: value for name, value in numbers(record).items() if name != "epoch" and isinstance(value, float | int)
    }

"""Tells a progress callback where a run stands, seldom enough to cost nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from odenet.training.history import EpochRecord, Progress

SECONDS_BETWEEN_CALLS = 0.2


class Report:
    """Counts steps and calls a progress callback.

    Args:
        callback: receives a `Progress`, or None.
        epochs: epochs of the run.
        steps_per_epoch: optimizer steps of an epoch.
        epochs_done: epochs that an earlier, interrupted run completed.
    """

    def __init__(
        self, callback: Callable[[Progress], None] | None, epochs: int, steps_per_epoch: int, epochs_done: int
    ):
        self._callback, self._epochs = callback, epochs
        self._steps = epochs * steps_per_epoch
        self._first = self._step = epochs_done * steps_per_epoch
        self._started = self._called = time.monotonic()

    def step_done(self, epoch: int, loss: float, nfe: float) -> None:
        """An optimizer step of epoch number `epoch` (from 0) is done."""
        self._step += 1
        if time.monotonic() - self._called >= SECONDS_BETWEEN_CALLS:
            self._call(epoch + 1, loss, nfe, None)

    def epoch_done(self, record: EpochRecord) -> None:
        """An epoch is done, evaluated and written."""
        self._call(record["epoch"], record["train_loss"], record["nfe_forward"], record)

    def _call(self, epoch: int, loss: float, nfe: float, record: EpochRecord | None) -> None:
        if self._callback is None:
            return
        now = time.monotonic()
        elapsed = now - self._started
        left = self._steps - self._step
        self._callback(
            Progress(
                epoch=epoch,
                epochs=self._epochs,
                step=self._step,
                steps=self._steps,
                loss=loss,
                nfe=nfe,
                seconds_elapsed=elapsed,
                eta_seconds=elapsed / (self._step - self._first) * left,
                record=record,
            )
        )
        self._called = now

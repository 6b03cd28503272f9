"""What a training run reports: a record of each epoch, and progress while it runs."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from odenet.artifacts import write_text


class EpochRecord(TypedDict):
    """Numbers of one epoch.

    Keys:
        epoch: 1 for the first.
        train_loss: mean cross-entropy (in a regression squared error) of the training samples, as they were seen during
            the epoch.
        train_accuracy: share of the training samples that were right (see `Objective`), as they were seen.
        test_loss: mean loss on the test set after the epoch.
        test_accuracy: share of the test set that is right after the epoch.
        nfe_forward: evaluations of F in the forward pass, summed over the blocks, mean over the steps.
        nfe_backward: evaluations of F in the backward pass, likewise.
        accepted: accepted solver steps in the forward pass, likewise.
        rejected: rejected solver steps in the forward pass, likewise.
        lr: learning rate of the last step.
        seconds: wall time of the training steps (no evaluation, no checkpoint).
        memory_bytes: on CUDA the peak of allocated memory during the epoch's training steps; on a CPU the peak of
            what one training step saves for its backward pass (see `SavedTensorMeter`); nan if not measurable.
        loss_jump: what the mean loss of the first training samples changed by when depth was changed before this epoch
            (see `Continuation`); 0 where it was not.
        monitor: what a monitor measured at the end of the epoch (see `OdeMonitor`); only where there is one.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    nfe_forward: float
    nfe_backward: float
    accepted: float
    rejected: float
    lr: float
    seconds: float
    memory_bytes: float
    loss_jump: float
    monitor: NotRequired[dict[str, float]]


History = list[EpochRecord]


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to the progress callback.

    Attributes:
        epoch: the current epoch, 1 for the first.
        epochs: epochs of the run.
        step: optimizer steps done, over the whole run.
        steps: optimizer steps of the whole run.
        loss: training loss of the latest step; after the evaluation of an epoch, the epoch's mean.
        nfe: evaluations of F in the latest forward pass; after the evaluation, the epoch's mean.
        seconds_elapsed: wall time since this call of `fit` began.
        eta_seconds: wall time that is left at the pace so far.
        record: the epoch's record once it is complete, otherwise None.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    nfe: float
    seconds_elapsed: float
    eta_seconds: float
    record: EpochRecord | None = None


def numbers(record: EpochRecord) -> dict[str, Any]:
    """All numbers of a record by one name each; those of a monitor as "monitor/<name>"."""
    flat: dict[str, Any] = {name: value for name, value in record.items() if name != "monitor"}
    return flat | {f"monitor/{name}": value for name, value in record.get("monitor", {}).items()}


def write_history(path: Path, history: History) -> None:
    """Write `history` as CSV to `path` atomically, one line for each epoch; what was not measured stays empty."""
    rows = [numbers(record) for record in history]
    names = [name for name in EpochRecord.__annotations__ if name != "monitor"]
    text = io.StringIO()
    fields = dict.fromkeys([*names, *(name for row in rows for name in row)])
    writer = csv.DictWriter(text, fieldnames=list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())

"""How a model is trained, apart from the model, the data, the optimizer and the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from odenet.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Settings of a training run.

    Args:
        epochs: passes over the training set.
        batch_size: samples in one optimizer step, over all processes together.
        eval_batch_size: samples in one forward pass of the evaluation.
        accelerator: "cpu", "gpu", "mps" or "auto", as in Lightning Fabric.
        devices: number of devices (processes), or "auto" for all that there are.
        strategy: "auto" or "ddp".
        precision: "32-true", "64-true", "bf16-mixed", "16-mixed" or "bf16-true", as in Lightning Fabric.
        grad_clip: largest Euclidean norm of the gradient of all parameters together, or None.
        threads: threads of one CPU operation, or None for torch's choice.
        seed: fixes the order of the batches, the augmentation and all random numbers that the model draws.
        checkpoint_every: epochs between two checkpoints; the last epoch always makes one.

    Raises:
        InputError: a value is out of range.
    """

    epochs: int = 10
    batch_size: int = 128
    eval_batch_size: int = 512
    accelerator: str = "cpu"
    devices: int | str = 1
    strategy: str = "auto"
    precision: Any = "32-true"
    grad_clip: float | None = None
    threads: int | None = None
    seed: int = 0
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_batch_size", "checkpoint_every"):
            self._check_positive(name)
        if self.threads is not None:
            self._check_positive("threads", " or None")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"seed must be a non-negative integer, got {self.seed!r}")
        if self.grad_clip is not None and not 0 < self.grad_clip < float("inf"):
            raise InputError(f"grad_clip must be positive and finite, or None, got {self.grad_clip!r}")
        if self.strategy not in ("auto", "ddp"):
            raise InputError(f'strategy must be "auto" or "ddp", got {self.strategy!r}')

    def _check_positive(self, name: str, otherwise: str = "") -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a positive integer{otherwise}, got {value!r}")

"""A loss or a gradient that is not finite ends training, in words: where, when, under which gradient method."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from odenet.blocks import blocks_of
from odenet.errors import GradientError, RunError, SolveError
from odenet.gradients import gradients

NAMED = 3  # parameters that a message names


@dataclass(frozen=True)
class Step:
    """One optimizer step, which says what it was if something in it is not finite.

    As a context manager it adds its epoch and number to a solve, or a gradient, that broke down.

    Args:
        model: what is trained.
        optimizer: what trains it.
        epoch: number of the epoch, 1 for the first.
        number: number of the step in its epoch, 1 for the first.
    """

    model: nn.Module
    optimizer: Optimizer
    epoch: int
    number: int

    def __enter__(self) -> Step:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, SolveError | GradientError):
            error.args = (f"{error}; this was {self}{_by_then(self.model)}", *error.args[1:])

    def __str__(self) -> str:
        methods = "".join(f", gradient={name!r}" for name in self._methods())
        lr = self.optimizer.param_groups[0]["lr"]
        return f"in epoch {self.epoch}, step {self.number} (learning rate {float(lr):.3g}{methods})"

    def _methods(self) -> list[str]:
        return sorted({block.scheme.gradient for block in blocks_of(self.model)})

    def loss(self, loss: Tensor) -> float:
        """The loss as a number.

        Raises:
            RunError: it is nan or infinite.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise RunError(
                f"the training loss became {value} {self}{_by_then(self.model)}; lower the learning rate or clip the "
                "gradient"
            )
        return value

    def gradients(self, loss: float) -> None:
        """Look at the gradients before the optimizer does; one number is brought from the device.

        Raises:
            RunError: an entry is nan or infinite.
        """
        found = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if found and math.isfinite(torch.nn.utils.get_total_norm(found).item()):
            return
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        several = len(self.optimizer.param_groups) > 1
        bad = [
            names.get(p, "a parameter that is not the model's") + (f" (parameter group {number})" if several else "")
            for number, group in enumerate(self.optimizer.param_groups)
            for p in group["params"]
            if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        if not bad:  # a norm of large, finite entries overflows
            return
        nan = any(bool(gradient.isnan().any()) for gradient in found)
        inexact = any(not gradients[name].exact for name in self._methods() if name in gradients)
        remedy = "take gradient='checkpoint', which solves nothing backwards" if inexact else "lower the learning rate"
        raise RunError(
            f"the gradient of {_some(bad)} became {'nan' if nan else 'inf'} {self} where the training loss was "
            f"{loss:.3g}; {remedy}, or find the operation with torch.autograd.set_detect_anomaly(True)"
        )


def _by_then(model: nn.Module) -> str:
    """Which parameters are not finite any more, if some are."""
    bad = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    return f", with parameters that were not finite any more ({_some(bad)})" if bad else ""


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more

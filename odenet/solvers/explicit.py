"""The step of an explicit Runge-Kutta method, for any tableau."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from odenet.solvers.tableau import Tableau

Evaluate = Callable[[float, Tensor], Tensor]


class Span(NamedTuple):
    """Where a step goes: from t to t_next on one piece of depth. h = t_next - t, or what a uniform grid calls h."""

    piece: int
    t: float
    t_next: float
    h: float


@dataclass(slots=True)
class Trial:
    """One step that was tried: from x at span.t to x_next at span.t_next.

    Attributes:
        stages: k_1 ... k_s; the last stage of an FSAL method is missing where nobody asked for it.
        error: local error estimate of x_next, or None.
        end: F(span.t_next, x_next), once it is known.
    """

    span: Span
    x: Tensor
    x_next: Tensor
    stages: list[Tensor]
    error: Tensor | None
    end: Tensor | None = None


class ExplicitRungeKutta:
    """A stepper: x_next from x, for the tableau it was given."""

    def __init__(self, tableau: Tableau):
        self.tableau = tableau
        self.name, self.order, self.reference = tableau.name, tableau.order, tableau.reference
        self.adaptive = tableau.b_error is not None
        self._last = tableau.stages - 1 if tableau.fsal else None

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`.

        Args:
            f: evaluates F at host time t and state x.
            span: the step; a stage at c = 1 is evaluated exactly at its end.
            x: state at the start.
            first: F(t, x) where it is known already.
            error: whether the error estimate is wanted (it may cost the last stage).
        """
        tableau, (_, t, t_next, h) = self.tableau, span
        skip = None if error else self._last
        k: list[Tensor] = []
        for i, (c, row) in enumerate(zip(tableau.c, tableau.a, strict=True)):
            if i == 0:
                k.append(f(t, x) if first is None else first)
            elif i != skip:
                t_stage = t_next if c == 1 else t + c * h
                k.append(f(t_stage, combine(x, h, row, k)))
        x_next = combine(x, h, tableau.b, k)
        estimate = None
        if error and tableau.b_error is not None:
            estimate = combine(None, h, tableau.b_error, k)
        end = k[self._last] if self._last is not None and skip is None else None
        return Trial(span, x, x_next, k, estimate, end)

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """x(t) inside a step, by the method's dense output; it may evaluate F(t_next, x_next), once for the step.

        Args:
            f: evaluates F.
            trial: the step.
            t: time inside the step.

        Reference:
            Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.6.
        """
        h, dense = trial.span.h, self.tableau.dense
        theta = (t - trial.span.t) / h
        if trial.end is None and (dense is None or self.tableau.fsal):
            trial.end = f(trial.span.t_next, trial.x_next)
        if dense is None:
            assert trial.end is not None
            return _hermite(trial, trial.end, h, theta)
        stages = trial.stages
        if trial.end is not None and self.tableau.fsal:
            stages = [*stages[: self.tableau.stages - 1], trial.end]
        weights = [sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in dense]
        return combine(trial.x, h, weights, stages)


def combine(x: Tensor | None, h: float, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """x + h Σ_i weights_i stages_i, leaving out zero weights (x = None counts as zero)."""
    result, fresh = x, False
    for w, k in zip(weights, stages, strict=False):
        if w == 0:
            continue
        if result is None:
            result, fresh = k * (h * w), True
        elif fresh:
            result.add_(k, alpha=h * w)
        else:
            result, fresh = torch.add(result, k, alpha=h * w), True
    assert result is not None
    return result


def _hermite(trial: Trial, end: Tensor, h: float, theta: float) -> Tensor:
    """Cubic Hermite interpolation from x, x_next and the slopes there."""
    s = 1 - theta
    value = trial.x * (s * s * (1 + 2 * theta))
    value = torch.add(value, trial.x_next, alpha=theta * theta * (3 - 2 * theta))
    value = torch.add(value, trial.stages[0], alpha=h * theta * s * s)
    return torch.add(value, end, alpha=-h * theta * theta * s)

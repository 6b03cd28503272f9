"""The step of an explicit Runge-Kutta method, for any tableau."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial
from odenet.solvers.tableau import Tableau


class ExplicitRungeKutta(Stepper):
    """x_next from x, for the tableau it was given."""

    def __init__(self, tableau: Tableau):
        self.tableau = tableau
        self.name, self.order, self.reference = tableau.name, tableau.order, tableau.reference
        self.error_order = None if tableau.b_error is None else tableau.order
        self._last = tableau.stages - 1 if tableau.fsal else None

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`; without `error` the last stage of an FSAL method is left out."""
        tableau, h = self.tableau, span.h
        skip = None if error else self._last
        k: list[Tensor] = []
        for i, (c, row) in enumerate(zip(tableau.c, tableau.a, strict=True)):
            if i == 0:
                k.append(f(span.t, x) if first is None else first)
            elif i != skip:
                k.append(f(span.at(c), combine(x, h, row, k)))
        x_next = combine(x, h, tableau.b, k)
        estimate = None
        if error and tableau.b_error is not None:
            estimate = combine(None, h, tableau.b_error, k)
        end = k[self._last] if self._last is not None and skip is None else None
        return Trial(span, x, x_next, k, estimate, end, given=memory, first=k[0])

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """x(t) inside a step, by the tableau's dense output, else by Hermite's cubic."""
        h, dense = trial.span.h, self.tableau.dense
        if dense is None:
            return super().interpolate(f, trial, t)
        theta = (t - trial.span.t) / h
        stages = trial.stages
        if self.tableau.fsal:
            stages = [*stages[: self.tableau.stages - 1], self.end_slope(f, trial)]
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

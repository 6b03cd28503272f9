"""The step of an explicit Runge-Kutta method, for any tableau."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial
from odenet.solvers.tableau import Tableau


class ExplicitRungeKutta(Stepper):
    """x_next from x, for the tableau it was given."""

    per_sample = True

    def __init__(self, tableau: Tableau):
        self.tableau = tableau
        self.name, self.order, self.reference = tableau.name, tableau.order, tableau.reference
        self.error_order = None if tableau.b_error is None else tableau.order
        self._last = tableau.stages - 1 if tableau.fsal else None
        self._later = list(zip(tableau.c, tableau.a, strict=True))[1:]

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
        count = tableau.stages if error or self._last is None else self._last
        k = [f(span.t, x) if first is None else first]
        at = x
        for c, row in self._later[: count - 1]:
            at = combine(x, h, row, k)
            k.append(f(span.at(c), at))
        ends = self._last is not None and count > self._last
        x_next = at if ends else combine(x, h, tableau.b, k)
        estimate = None
        if error and tableau.b_error is not None:
            estimate = combine(None, h, tableau.b_error, k)
        return Trial(span, x, x_next, k, estimate, k[-1] if ends else None, memory, NOTHING, k[0])

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """x(t) inside a step, by the tableau's dense output, else by Hermite's cubic."""
        h, dense = trial.span.h, self.tableau.dense
        if dense is None:
            return super().interpolate(f, trial, t)
        theta = trial.span.fraction(t)
        stages = trial.stages
        if self.tableau.fsal:
            stages = [*stages[: self.tableau.stages - 1], self.end_slope(f, trial)]
        weights = [sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in dense]
        return combine(trial.x, h, weights, stages)


def combine(x: Tensor | None, h: Any, weights: Sequence[Any], stages: Sequence[Tensor]) -> Tensor:
    """x + h Σ_i weights_i stages_i, leaving out zero weights (x = None counts as zero).

    h is a number, or a tensor that broadcasts against the state, as the weights may be too then.
    """
    if isinstance(h, Tensor):
        return _combine_rows(x, h, weights, stages)
    result, fresh = x, False
    for w, k in zip(weights, stages, strict=False):
        if w == 0:
            continue
        if fresh:
            result.add_(k, alpha=h * w)  # type: ignore[union-attr]
        else:
            result, fresh = k * (h * w) if result is None else torch.add(result, k, alpha=h * w), True
    assert result is not None
    return result


def _combine_rows(x: Tensor | None, h: Tensor, weights: Sequence[Any], stages: Sequence[Tensor]) -> Tensor:
    """`combine` with one h for each sample."""
    total: Tensor | None = None
    for w, k in zip(weights, stages, strict=False):
        if isinstance(w, Tensor):
            total = k * w if total is None else torch.addcmul(total, k, w)
        elif w != 0:
            total = k * w if total is None else total.add_(k, alpha=w)
    assert total is not None
    return total * h if x is None else torch.addcmul(x, total, h)

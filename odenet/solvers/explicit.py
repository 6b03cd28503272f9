"""The step of an explicit Runge-Kutta method, for any tableau."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        self.controller = tableau.controller
        self.error_order = None if tableau.b_error is None else tableau.error_order or tableau.order
        rows = list(zip(tableau.c, tableau.a, strict=True))
        self._later, self._for_error = rows[1 : tableau.used], rows[tableau.used :]
        self._fsal = tableau.fsal

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`; without `error` the stages that x_next does not depend on are left out."""
        tableau, h = self.tableau, span.h
        k = [f(span.t, x) if first is None else first]
        for c, row in self._later:
            at = combine(x, h, row, k)
            k.append(f(span.at(c), at))
        x_next = combine(x, h, tableau.b, k)
        if not error or tableau.b_error is None:
            return Trial(span, x, x_next, k, None, None, memory, NOTHING, k[0])
        for c, row in self._for_error:
            at = x_next if self._fsal else combine(x, h, row, k)
            k.append(f(span.at(c), at))
        estimate: Any = combine(None, h, tableau.b_error, k)
        if tableau.b_coarse is not None:
            estimate = estimate, combine(None, h, tableau.b_coarse, k)
        return Trial(span, x, x_next, k, estimate, k[-1] if self._fsal else None, memory, NOTHING, k[0])

    def advance(self, f: Evaluate, spans: Sequence[Span], x: Tensor) -> Tensor:
        """x_next of `step` over one span after the other, where nothing else of the steps is wanted."""
        later, b = self._later, self.tableau.b
        for span in spans:
            h = span.h
            if later:
                k = [f(span.t, x)]
                for c, row in later:
                    k.append(f(span.at(c), combine(x, h, row, k)))
                x = combine(x, h, b, k)
            else:
                x = torch.add(x, f(span.t, x), alpha=h * b[0])
        return x

    def error_ratio(self, error: Any, weight: Tensor, norm: Callable[[Tensor], Any]) -> Any:
        """Size of the error estimate in units of the tolerance; of two, |E|² / √(|E|² + |E_c|²/100), 0 if E = 0.

        Reference:
            Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.10.
        """
        if self.tableau.b_coarse is None:
            return super().error_ratio(error, weight, norm)
        fine, coarse = (torch.as_tensor(norm(part / weight), dtype=torch.float64) for part in error)
        return torch.where(fine == 0, fine, fine * (fine / torch.hypot(fine, coarse / 10)))

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """x(t) inside a step, by the tableau's dense output (further stages once for the step), else by Hermite's."""
        if self.tableau.dense is None:
            return super().interpolate(f, trial, t)
        stages, theta = self._dense_stages(f, trial), trial.span.fraction(t)
        weights = [sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in self.tableau.dense]
        return combine(trial.x, trial.span.h, weights, stages)

    def _dense_stages(self, f: Evaluate, trial: Trial) -> list[Tensor]:
        """What the dense output weighs, in its order."""
        tableau = self.tableau
        assert tableau.dense is not None
        stages = trial.stages[: tableau.used]
        if len(tableau.dense) > tableau.used:
            stages.append(self.end_slope(f, trial))
        if trial.further is None:
            trial.further = []
            for c, row in zip(tableau.dense_c, tableau.dense_a, strict=True):
                at = combine(trial.x, trial.span.h, row, [*stages, *trial.further])
                trial.further.append(f(trial.span.at(c), at))
        return [*stages, *trial.further]


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

"""Linear multistep methods: Adams-Bashforth and Adams-Bashforth-Moulton, on any grid.

The values of F at the last steps are the method's memory. The first steps, and those after every knot of the weights
over depth (where F becomes another function), are taken by a Runge-Kutta method.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.control import scale
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial
from odenet.solvers.tableaus import TABLEAUS

if TYPE_CHECKING:
    from odenet.solvers.problem import Problem

STARTERS = {2: "heun2", 3: "heun3", 4: "rk4", 5: "dopri5"}


@lru_cache(maxsize=1024)
def adams_weights(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights w with ∫_0^1 p(s) ds = Σ_j w_j p(nodes_j) for every polynomial p of degree below the number of nodes.

    Args:
        nodes: times in units of the step, 0 at its start and 1 at its end.
    """
    powers = np.arange(len(nodes))
    vandermonde = np.array(nodes)[None, :] ** powers[:, None]
    return tuple(float(w) for w in np.linalg.solve(vandermonde, 1 / (powers + 1)))


class Adams(Stepper):
    """x⁺ = x + h Σ_j w_j F(t_j, x_j) over the last k points; with `corrector`, then once more with F at that x⁺ among
    them and the oldest point left out (predict, evaluate, correct, and evaluate at the next step's start).

    The options of a corrector: `corrections`, how often at most it evaluates and corrects (1), and `settled`, (rtol,
    atol): it stops when no element of x⁺ is changed by more than atol + rtol |x⁺ - x|, and warns if that is not
    reached. A look at the device for each correction is what `settled` costs.

    Args:
        order: k.
        corrector: Adams-Moulton after Adams-Bashforth.
        options: of the corrector.

    Raises:
        InputError: an option that cannot be used.

    Reference:
        Bashforth and Adams 1883; Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, III.1,
        III.5 (weights for unequal steps).
    """

    per_sample = True

    def __init__(self, order: int, corrector: bool = False, options: Mapping[str, Any] | None = None):
        self.order, self.corrector, self.looks_back = order, corrector, order - 1
        self.name = f"{'abm' if corrector else 'ab'}{order}"
        self.reference = f"Adams-Bashforth{'-Moulton' if corrector else ''} of order {order}; Bashforth and Adams 1883"
        self.options = ("corrections", "settled") if corrector else ()
        options = options or {}
        self._corrections: int = options.get("corrections", 1)
        self._settled: tuple[Any, Any] | None = options.get("settled")
        self._starter = ExplicitRungeKutta(TABLEAUS[STARTERS[order]])
        if not isinstance(self._corrections, int) or self._corrections < 1:
            raise InputError(f"corrections must be a positive integer, got {self._corrections!r}")
        if self._settled is not None and len(self._settled) != 2:
            raise InputError(f"settled must be a pair (rtol, atol), got {self._settled!r}")

    def prepare(self, problem: Problem) -> Adams:
        """This method with the options of a solve."""
        return Adams(self.order, self.corrector, problem.scheme.options) if problem.scheme.options else self

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`; the memory holds the slopes before the start, oldest first."""
        k = f(span.t, x) if first is None else first
        slopes, times = (*memory.tensors, k), (*memory.times, span.t)
        if len(slopes) < self.order:
            trial = self._starter.step(f, span, x, NOTHING, k)
            trial.given, trial.memory = memory, Memory(slopes, times)
            return trial
        stages = list(slopes)
        x_next = combine(x, span.h, self._weights(span, times), slopes)
        if self.corrector:
            weights = self._weights(span, (*times[1:], span.t_next))
            for correction in range(1, self._corrections + 1):
                before, stages = x_next, [*slopes, f(span.t_next, x_next)]
                x_next = combine(x, span.h, weights, stages[1:])
                if self._settled is not None and bool(self._is_settled(x, before, x_next).all()):
                    break
                if self._settled is not None and correction == self._corrections:
                    self._warn()
        return Trial(span, x, x_next, stages, given=memory, memory=Memory(slopes[1:], times[1:]), first=k)

    @torch.no_grad()
    def _is_settled(self, x: Tensor, before: Tensor, x_next: Tensor) -> Tensor:
        """Whether a correction changed little, element by element."""
        assert self._settled is not None
        return (x_next - before).abs() <= scale(before - x, *self._settled, x_next - x)

    def _warn(self) -> None:
        warnings.warn(
            f"the corrections of {self.name} did not settle within {self._corrections} iterations a step; allow more "
            "of them, or take smaller steps",
            stacklevel=3,
        )

    def _weights(self, span: Span, times: tuple[float, ...]) -> tuple[float, ...]:
        # Rounded, so that the steps of a uniform grid share one entry of the cache.
        return adams_weights(tuple(round((t - span.t) / span.h, 12) for t in times))


METHODS = [*(Adams(order) for order in (2, 3, 4, 5)), *(Adams(order, corrector=True) for order in (2, 3, 4, 5))]

"""Linear multistep methods: Adams-Bashforth and Adams-Bashforth-Moulton, on any grid.

The values of F at the last steps are the method's memory. The first steps, and those after every knot of the weights
over depth (where F becomes another function), are taken by a Runge-Kutta method.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from torch import Tensor

from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial
from odenet.solvers.tableaus import TABLEAUS

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

    Args:
        order: k.
        corrector: Adams-Moulton after Adams-Bashforth.

    Reference:
        Bashforth and Adams 1883; Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, III.1,
        III.5 (weights for unequal steps).
    """

    def __init__(self, order: int, corrector: bool = False):
        self.order, self.corrector = order, corrector
        self.name = f"{'abm' if corrector else 'ab'}{order}"
        self.reference = f"Adams-Bashforth{'-Moulton' if corrector else ''} of order {order}; Bashforth and Adams 1883"
        self._starter = ExplicitRungeKutta(TABLEAUS[STARTERS[order]])

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
            stages.append(f(span.t_next, x_next))
            weights = self._weights(span, (*times[1:], span.t_next))
            x_next = combine(x, span.h, weights, stages[1:])
        return Trial(span, x, x_next, stages, given=memory, memory=Memory(slopes[1:], times[1:]), first=k)

    def _weights(self, span: Span, times: tuple[float, ...]) -> tuple[float, ...]:
        # Rounded, so that the steps of a uniform grid share one entry of the cache.
        return adams_weights(tuple(round((t - span.t) / span.h, 12) for t in times))


METHODS = [*(Adams(order) for order in (2, 3, 4, 5)), *(Adams(order, corrector=True) for order in (2, 3, 4, 5))]

"""The answer of a solve."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from odenet.errors import InputError, SolveError
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import Span
from odenet.solvers.times import host_time

Interpolant = tuple[Span, Callable[[float], Tensor]]


class Solution:
    """States at the times that were asked for, and what it took to get them.

    Args:
        states: x at each time of `times`, each of the initial state's shape.
        times: host times, from t0 towards t1.
        stats: what the solve did; the backward pass adds its part when it runs.
        interpolants: the steps and their dense outputs, if the solution is to be callable.
        error: why the solve broke down, if it did (with `on_failure="status"`).

    Attributes:
        stats: what the solve did.
        status: "success", or the status of the error.
        error: why the solve broke down, or None.
    """

    def __init__(
        self,
        states: Sequence[Tensor],
        times: Sequence[float],
        stats: Stats,
        interpolants: Sequence[Interpolant] | None = None,
        error: SolveError | None = None,
    ):
        self.states, self.times, self.stats = list(states), list(times), stats
        self.error = error
        self.status = "success" if error is None else error.status
        self._interpolants = interpolants

    @property
    def ys(self) -> Tensor:
        """States, shape (len(ts), *x0.shape); without `ts` the one state x(t1)."""
        return torch.stack(self.states)

    @property
    def ts(self) -> Tensor:
        """Times of the states, shape (len(ts),), float64."""
        return torch.tensor(self.times, dtype=torch.float64)

    @property
    def last(self) -> Tensor:
        """State at the last time, of x0's shape."""
        return self.states[-1]

    def __call__(self, t: float) -> Tensor:
        """x(t) by the method's dense output, of x0's shape.

        Args:
            t: a time between t0 and t1.

        Raises:
            InputError: the solve was made without `dense=True`, or t lies outside.
        """
        if self._interpolants is None:
            raise InputError("a solution can be called only if it was made with dense=True")
        t = host_time("t", t)
        if not self._interpolants:
            if t != self.times[-1]:
                raise InputError(f"t must be {self.times[-1]:g}, where this solve begins and ends, got {t!r}")
            return self.last
        first, last = self._interpolants[0][0], self._interpolants[-1][0]
        sign = -1.0 if last.t_next < first.t else 1.0
        if not (sign * first.t <= sign * t <= sign * last.t_next):
            raise InputError(f"t must lie between {first.t:g} and {last.t_next:g}, got {t!r}")
        index = bisect_left(self._interpolants, sign * t, key=lambda entry: sign * entry[0].t_next)
        return self._interpolants[index][1](t)

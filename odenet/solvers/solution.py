"""The answer of a solve."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError, SolveError
from odenet.solvers.events import Hit
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import Span
from odenet.solvers.times import host_time

Interpolant = tuple[Span, Callable[[float], Tensor]]
Unpack = Callable[..., Any]


@dataclass
class Occurrences:
    """What happened to one event.

    Attributes:
        ts: times, shape (n,), differentiable.
        ys: states there, shape (n, *x0.shape), or a tree of such tensors; differentiable.
        elements: which element of the event's function crossed zero, index into its flattened value (for one sample,
            if each had its own steps), shape (n,).
        samples: to which sample it happened, shape (n,), if each had its own steps.
    """

    ts: Tensor
    ys: Any
    elements: Tensor
    samples: Tensor | None = None

    @classmethod
    def of(cls, found: Sequence[tuple[Tensor, Tensor, int]], like: Tensor, unpack: Unpack | None) -> Occurrences:
        """From (time, state, element) triples.

        Args:
            found: the triples in order of time.
            like: a state.
            unpack: makes a tree of packed states.
        """
        ts = torch.stack([t for t, _, _ in found]) if found else torch.zeros(0, dtype=torch.float64)
        ys = torch.stack([x for _, x, _ in found]) if found else like.detach().new_zeros(0, *like.shape)
        return cls(ts, unpack(ys, 1) if unpack else ys, torch.tensor([e for _, _, e in found], dtype=torch.long))


class Solution:
    """States at the times that were asked for, and what it took to get them.

    Args:
        states: x at each time of `times`, packed into one tensor if the initial state was a tree.
        times: host times, from t0 towards t1.
        stats: what the solve did; the backward pass adds its part when it runs.
        interpolants: the steps and their dense outputs, if the solution is to be callable.
        error: why the solve broke down, if it did (with `on_failure="status"`).
        hits: for each state the event that it belongs to, or None if its time was asked for.
        unpack: makes a tree of a packed state, or of several with their number of leading dimensions.

    Attributes:
        stats: what the solve did.
        status: "success"; "event" if a terminal event ended the solve; or the status of the error.
        error: why the solve broke down, or None.
        events: what happened to each of the events, in the order in which they were given.
    """

    def __init__(
        self,
        states: Sequence[Tensor],
        times: Sequence[float],
        stats: Stats,
        interpolants: Sequence[Interpolant] | None = None,
        error: SolveError | None = None,
        hits: Sequence[Hit | None] | None = None,
        unpack: Unpack | None = None,
    ):
        self.states, self.times, self.stats = list(states), list(times), stats
        self.error = error
        self.hits = [None] * len(self.times) if hits is None else list(hits)
        self.status = "success" if error is None else error.status
        self.events: list[Occurrences] = []
        self.interpolants, self._unpack = interpolants, unpack

    def __repr__(self) -> str:
        """Status, last time, number of outputs, and what it took, on one line."""
        t = f"t={self.times[-1]:g}, " if self.times else ""
        return f"Solution({self.status!r}, {t}outputs={len(self.times)}, {self.stats.brief})"

    @property
    def ys(self) -> Any:
        """States, shape (len(ts), *x0.shape), or a tree of such tensors; without `ts` the one state x(t1)."""
        ys = torch.stack(self.states)
        return self._unpack(ys, 1) if self._unpack else ys

    @property
    def ts(self) -> Tensor:
        """Times of the states, shape (len(ts),), float64."""
        return torch.tensor(self.times, dtype=torch.float64)

    @property
    def last(self) -> Any:
        """State at the last time, of x0's shape and structure."""
        return self._unpack(self.states[-1]) if self._unpack else self.states[-1]

    def unpacked(self, x: Tensor) -> Any:
        """One of `states` in x0's structure."""
        return self._unpack(x) if self._unpack else x

    def __call__(self, t: float) -> Any:
        """x(t) by the method's dense output, of x0's shape and structure.

        Args:
            t: a time between t0 and t1, or the event at which the solve ended. At an event that changed the state, the
                state before the change.

        Raises:
            InputError: the solve was made without `dense=True`, or t lies outside.
        """
        if self.interpolants is None:
            raise InputError("a solution can be called only if it was made with dense=True")
        t = host_time("t", t)
        x = self._at(t)
        return self._unpack(x) if self._unpack else x

    def _at(self, t: float) -> Tensor:
        assert self.interpolants is not None
        if not self.interpolants:
            if t != self.times[-1]:
                raise InputError(f"t must be {self.times[-1]:g}, where this solve begins and ends, got {t!r}")
            return self.states[-1]
        first, last = self.interpolants[0][0], self.interpolants[-1][0]
        sign = -1.0 if last.t_next < first.t else 1.0
        if not (sign * first.t <= sign * t <= sign * last.t_next):
            raise InputError(f"t must lie between {first.t:g} and {last.t_next:g}, got {t!r}")
        index = bisect_left(self.interpolants, sign * t, key=lambda entry: sign * entry[0].t_next)
        return self.interpolants[index][1](t)

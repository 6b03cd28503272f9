"""An initial value problem over depth: F with its weights, where it starts, where the answer is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.solvers.control import fixed_spans, pieces_of_depth
from odenet.solvers.field import VectorField
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import Span, Stepper


class Problem:
    """x' = F(t, x, *args), x(t0) = x0, wanted at times ts, to be walked by a scheme.

    Args:
        weights: F with its weights over depth.
        x0: (batch, ...) initial state.
        interval: (t0, t1); t1 < t0 walks backwards.
        scheme: how it is walked.
        ts: times of the answer, from t0 towards t1, or None for t1 alone.
        args: handed to F after (t, x).
        dense: whether the solution is to be callable at any time.

    Attributes:
        ts: times of the answer as host numbers; t1 if none were given.
        field: F with its bookkeeping.
        stats: what happened so far.

    Raises:
        InputError: a value that cannot be used.
    """

    def __init__(
        self,
        weights: DepthWeights,
        x0: Tensor,
        interval: Sequence[Any],
        scheme: Scheme,
        ts: Any = None,
        args: tuple[Any, ...] = (),
        dense: bool = False,
    ):
        if not isinstance(x0, Tensor):
            raise InputError(f"the state must be a tensor, got {type(x0).__name__}")
        if x0.dtype.itemsize < 4 and torch.is_autocast_enabled(x0.device.type):
            x0 = x0.float()
        scheme.check_dtype(x0.dtype)
        self.t0, self.t1 = _interval(interval)
        self.weights, self.x0, self.scheme, self.args, self.dense = weights, x0, scheme, args, dense
        self.ts = [self.t1] if ts is None else _times(ts, self.t0, self.t1)
        self.stats = Stats()
        self.field = VectorField(weights, args, x0, (self.t0, self.t1), self.stats, scheme.max_nfe)

    @cached_property
    def stepper(self) -> Stepper:
        """The native method that takes the steps; a gradient method may put a reversible form of it here."""
        return solvers[self.scheme.solver]

    @property
    def direction(self) -> float:
        """1 if depth is walked forwards, -1 if backwards."""
        return -1.0 if self.t1 < self.t0 else 1.0

    def pieces(self) -> list[tuple[float, float]]:
        """(start, end) of every piece of depth."""
        return pieces_of_depth(self.t0, self.t1, self.weights.knots)

    def spans(self) -> list[Span]:
        """The steps of a fixed-step scheme."""
        assert self.scheme.steps is not None
        if self.t0 == self.t1:
            return []
        return fixed_spans(self.t0, self.t1, self.scheme.steps, self.weights.knots)


def _interval(interval: Sequence[Any]) -> tuple[float, float]:
    try:
        t0, t1 = interval
    except (TypeError, ValueError):
        raise InputError(f"the interval must be a pair (t0, t1), got {interval!r}") from None
    return host_time("t0", t0), host_time("t1", t1)


def host_time(name: str, t: Any) -> float:
    """A time as a host float.

    Raises:
        InputError: not a finite number, or a tensor that requires a gradient (which would be lost).
    """
    if isinstance(t, Tensor):
        if t.requires_grad:
            raise InputError(f"{name} requires a gradient, but times are constants of the gradient; detach it")
        if t.numel() != 1:
            raise InputError(f"{name} must be a number, got a tensor of shape {tuple(t.shape)}")
    try:
        value = float(t)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, got {t!r}") from None
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value}")
    return value


def _snap(t: float, eps: float, t0: float, t1: float) -> float:
    """t, or the end of depth that it is when rounded to a dtype with this eps."""
    return next((end for end in (t0, t1) if abs(t - end) <= eps * max(abs(t0), abs(t1))), t)


def _times(ts: Any, t0: float, t1: float) -> list[float]:
    if isinstance(ts, Tensor) and ts.requires_grad:
        raise InputError("ts requires a gradient, but times are constants of the gradient; detach it")
    try:
        times = [host_time("ts", t) for t in (ts.tolist() if isinstance(ts, Tensor) else ts)]
    except TypeError:
        raise InputError(f"ts must be a list or 1-d tensor of times, got {ts!r}") from None
    if not times:
        raise InputError("ts must hold at least one time, got none")
    if isinstance(ts, Tensor) and ts.is_floating_point():
        times = [_snap(t, torch.finfo(ts.dtype).eps, t0, t1) for t in times]
    sign = -1.0 if t1 < t0 else 1.0
    previous = t0
    for t in times:
        if sign * (t - previous) < 0 or sign * (t1 - t) < 0:
            raise InputError(f"ts must run from t0={t0:g} towards t1={t1:g} without turning back, got {t:g} in {times}")
        previous = t
    return times

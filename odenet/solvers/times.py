"""Times on the host: float64 numbers, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError


def host_interval(interval: Sequence[Any]) -> tuple[float, float]:
    """(t0, t1) as host floats.

    Raises:
        InputError: not a pair of finite numbers.
    """
    t0, t1 = ends_of(interval)
    return host_time("t0", t0), host_time("t1", t1)


def ends_of(interval: Sequence[Any]) -> tuple[Any, Any]:
    """(t0, t1) as they were given.

    Raises:
        InputError: not a pair.
    """
    try:
        t0, t1 = interval
    except (TypeError, ValueError):
        raise InputError(f"the interval must be a pair (t0, t1), got {interval!r}") from None
    return t0, t1


def host_time(name: str, t: Any) -> float:
    """A time as a host float.

    Raises:
        InputError: not a finite number, or a tensor that requires a gradient (which would be lost).
    """
    if type(t) is float and math.isfinite(t):
        return t
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


def host_times(name: str, values: Any) -> list[float]:
    """Several times as host floats.

    Raises:
        InputError: not a list or 1-d tensor of finite numbers.
    """
    try:
        return [host_time(name, t) for t in (values.tolist() if isinstance(values, Tensor) else values)]
    except TypeError:
        raise InputError(f"{name} must be a list or 1-d tensor of times, got {values!r}") from None


def _snap(t: float, eps: float, t0: float, t1: float) -> float:
    """t, or the end of depth that it is when rounded to a dtype with this eps."""
    return next((end for end in (t0, t1) if abs(t - end) <= eps * max(abs(t0), abs(t1))), t)


def output_times(ts: Any, t0: float, t1: float) -> list[float]:
    """The times of the answer as host floats; one that is t0 or t1 to its own precision becomes t0 or t1.

    Raises:
        InputError: not times that run from t0 towards t1.
    """
    if isinstance(ts, Tensor) and ts.requires_grad:
        raise InputError("ts requires a gradient, but times are constants of the gradient; detach it")
    times = host_times("ts", ts)
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

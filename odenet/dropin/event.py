"""`odeint_event`: solve until an event, with a differentiable event time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenet.dropin.odeint import odeint
from odenet.errors import InputError


def odeint_event(
    func: Any,
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solve dy/dt = func(t, y), y(t0) = y0, until event_fn(t, y) changes its sign, as `torchdiffeq.odeint_event` is
    called.

    Args:
        func: as in `odeint`.
        y0: as in `odeint`.
        t0: a tensor of one time.
        event_fn: g(t, y), a tensor of any shape; the first element that changes its sign ends the solve. One that is
            zero at t0 has to leave zero first.
        reverse_time: whether to go backwards in time.
        odeint_interface: `odeint`, `odeint_adjoint`, or anything that is called like them.
        **kwargs: handed to `odeint_interface`.

    Returns:
        The time of the event, a 0-d tensor, and y at t0 and there, (2, *y0.shape) or a tuple of such tensors. Both are
        differentiable with respect to all that the solve and event_fn depend on.

    Raises:
        InputError: an argument that cannot be used.
        SolveError: the solve broke down, or there was no event.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise InputError(f"t0 must be a tensor of one time, got {t0!r}")
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1 if reverse_time else 1)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    leaves = [solution] if isinstance(solution, Tensor) else list(solution)
    if event_t.requires_grad or not torch.is_grad_enabled() or not any(leaf.requires_grad for leaf in leaves):
        return event_t, solution
    return _linked(func, event_fn, event_t, leaves, isinstance(solution, Tensor))


def _linked(func: Any, event_fn: Any, t: Tensor, leaves: list[Tensor], single: bool) -> tuple[Tensor, Any]:
    """The answer of an interface that holds the event's time fixed, as a function of the state there:

    dt* = -dg / (∂g/∂t + ∂g/∂y func),   dy = func dt*
    """

    def state(parts: list[Tensor]) -> Any:
        return parts[0] if single else tuple(parts)

    def g(t: Tensor, parts: list[Tensor]) -> Tensor:
        value = event_fn(t, state(parts)).reshape(-1)
        return value[value.detach().abs().argmin()]

    last = [leaf[-1] for leaf in leaves]
    with torch.no_grad():
        k = func(t, state(last))
    slopes = [k] if single else list(k)
    at = [part.detach().requires_grad_() for part in (t, *last)]
    value = g(at[0], at[1:])
    by_time, *by_state = torch.autograd.grad(value, at, allow_unused=True, materialize_grads=True)
    rate = by_time + sum((d * s).sum() for d, s in zip(by_state, slopes, strict=True))
    now = g(t, last)
    moving = t - (now - now.detach()) / rate
    last = [part + slope * (moving - t) for part, slope in zip(last, slopes, strict=True)]
    return moving, state([torch.cat([leaf[:-1], end[None]]) for leaf, end in zip(leaves, last, strict=True)])

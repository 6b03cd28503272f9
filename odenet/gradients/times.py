"""Gradients with respect to times: the ends of the interval, the times of the answer, the times of events.

A solver takes times as constants; what a time changes is added to its result as a term of value zero:

    ∂x(t_i)/∂t_i = F(t_i, x(t_i)),   ∂x(t)/∂t0 = -∂x(t)/∂x0 F(t0, x0),   dt*/dg = -1/(∂g/∂t + ∂g/∂x F) at g(t*, x*) = 0

These are derivatives of the ODE's solution, as exact as the solution is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from odenet.errors import GradientError
from odenet.solvers.events import Hit
from odenet.solvers.problem import Problem
from odenet.solvers.times import ends_of


def moves(t: Any) -> bool:
    """Whether a time is a tensor that a gradient is wanted for."""
    return isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled()


class Times:
    """The times of a solve that a gradient is wanted for.

    Args:
        interval: (t0, t1), numbers or tensors.
        ts: times of the answer, or None for t1.

    Attributes:
        interval: the interval as constants.
        ts: times of the answer as constants.
    """

    def __init__(self, interval: Sequence[Any], ts: Any):
        self.t0, self.t1 = ends_of(interval)
        self.outputs = [self.t1] if ts is None else ts
        self.interval = (constant(self.t0), constant(self.t1))
        self.ts = None if ts is None else constant(ts) if isinstance(ts, Tensor) else _constants(ts)

    def start(self, problem: Problem) -> Tensor:
        """x0 as a function of t0."""
        check_knots(problem, self.t0, self.t1)
        return moved(problem, problem.x0, problem.t0, self.t0, -1) if moves(self.t0) else problem.x0

    def finish(self, problem: Problem, states: list[Tensor], times: Sequence[float]) -> list[Tensor]:
        """The states at the times of the answer as functions of these times."""
        if not torch.is_grad_enabled():
            return states
        if not (moves(self.outputs) if isinstance(self.outputs, Tensor) else any(map(moves, self.outputs))):
            return states
        asked = [*list(self.outputs)[: len(states)], *[None] * (len(states) - len(self.outputs))]
        return [
            moved(problem, x, t, moving) if isinstance(moving, Tensor) and moves(moving) else x
            for x, t, moving in zip(states, times, asked, strict=True)
        ]


def check_knots(problem: Any, t0: Any, t1: Any) -> None:
    """Raise `GradientError` if the weights have knots that would have to move with an end of the interval."""
    if problem.weights.pieces > 1 and (moves(t0) or moves(t1)):
        raise GradientError(
            "a gradient for t0 or t1 would have to move the knots of the weights over depth with them; detach "
            "t0 and t1, or use weights='tied'"
        )


def constant(t: Any) -> Any:
    """A time without its gradient."""
    return t.detach() if isinstance(t, Tensor) else t


def _constants(ts: Any) -> Any:
    try:
        return [constant(t) for t in ts]
    except TypeError:
        return ts


def moved(problem: Problem, x: Tensor, t: float, moving: Tensor, sign: int = 1) -> Tensor:
    """x + sign F(t, x) (moving - t), a term of value zero."""
    step = (moving - moving.detach()).to(x.device, x.dtype.to_real())
    return x + sign * slope(problem, t, x) * step


def slope(problem: Problem, t: float, x: Tensor) -> Tensor:
    """F(t, x) on the piece of depth that ends at t or holds it; the first piece at t0."""
    sign = problem.direction
    pieces = problem.pieces()
    piece = next(
        (i for i, (start, end) in enumerate(pieces) if start != end and sign * t <= sign * end), len(pieces) - 1
    )
    with problem.field.recompute():
        return problem.field.piece(piece)(t, x)


class _Root(torch.autograd.Function):
    """The time t* at which g(t*, x(t*)) = 0, as a function of g at t* held fixed."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, rate: Tensor, t: Tensor) -> Tensor:
        ctx.rate, ctx.kind = rate, g.dtype
        return t.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None, None]:
        if bool((ctx.rate == 0).any()):
            raise GradientError("the time of an event at which g does not change with time has no gradient")
        return (-a / ctx.rate).to(ctx.kind), None, None


def root_time(g: Tensor, rate: Tensor, t: Tensor) -> Tensor:
    """The times t* at which g(t*, x(t*)) = 0, as functions of g at t* held fixed.

    Args:
        g: values of g there, differentiable.
        rate: dg/dt along the solution.
        t: the times.
    """
    return _Root.apply(g, rate, t)  # pyright: ignore[reportReturnType]


def moment(problem: Problem, hit: Hit, x: Tensor) -> tuple[Tensor, Tensor]:
    """Time and state of an event, as differentiable functions of what the state there depends on.

    Args:
        problem: what was solved.
        hit: the event.
        x: state at the event, its time held fixed.

    Returns:
        The time, a 0-d float64 tensor (float32 where the device has no other), and the state.

    Reference:
        Chen, Amos and Nickel 2021, Learning Neural Event Functions for Ordinary Differential Equations.
    """
    t = torch.tensor(hit.t, dtype=torch.float32 if x.device.type == "mps" else torch.float64, device=x.device)
    if not torch.is_grad_enabled():
        return t, x
    value: Callable[..., Tensor] = problem.events[hit.event].function
    time = problem.field.time(hit.t)
    g = value(time, x, *problem.args).reshape(-1)[hit.element]
    if not g.requires_grad:
        return t, x
    with torch.no_grad():
        k = slope(problem, hit.t, x)
    at = [time.detach().requires_grad_(), x.detach().requires_grad_()]
    by_time, by_state = torch.autograd.grad(
        value(*at, *problem.args).reshape(-1)[hit.element], at, allow_unused=True, materialize_grads=True
    )
    t = root_time(g, by_time + (by_state.conj() * k).sum().real, t)
    return t, x + k * (t - t.detach()).to(x.dtype.to_real())

"""torchdiffeq's solvers, and its adjoint, behind odenet's problem and solution.

Differences from calling torchdiffeq directly: steps end exactly at t1 and at every knot of the weights over depth, F
is never shown a time outside [t0, t1], fixed-step methods always have a grid, evaluations and steps are counted, and a
solve that breaks down raises odenet's errors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from odenet.backends.pieces import integrate_pieces
from odenet.errors import (
    InputError,
    NonFiniteFunctionError,
    NonFiniteStateError,
    StepBudgetError,
    StepUnderflowError,
)
from odenet.solvers.problem import Problem
from odenet.solvers.registry import Method
from odenet.solvers.solution import Solution

ODEInt = Callable[..., Any]


class Torchdiffeq:
    """The solvers of torchdiffeq (Chen 2018)."""

    refuses: tuple[str, ...] = ("controller",)

    def methods(self) -> dict[str, Method]:
        """torchdiffeq's methods by name, as installed."""
        return _methods()

    def integrate(self, problem: Problem) -> Solution:
        """Solve `problem` with `torchdiffeq.odeint`; gradients by backprop through its operations.

        Raises:
            SolveError: the solve broke down.
        """
        from torchdiffeq import odeint

        return integrate(problem, lambda piece, f, x: odeint)


def integrate(problem: Problem, odeint_for: Callable[[int, Steps, Tensor], ODEInt]) -> Solution:
    """Solve `problem` piece by piece.

    Args:
        problem: what to solve.
        odeint_for: for a piece of depth, its function and its initial state: what to call with odeint's arguments.
    """
    if problem.dense:
        raise InputError("dense=True needs backend='native'; with torchdiffeq give the times as ts")
    scheme = problem.scheme
    tolerances = dict(zip(("rtol", "atol"), scheme.tolerances, strict=True)) if scheme.adaptive else {}

    def solve_piece(piece: int, stops: list[float], x: Tensor) -> Sequence[Tensor]:
        f = Steps(problem, piece, stops)
        try:
            path = odeint_for(piece, f, x)(
                f, x, time_tensor(stops, x), method=scheme.solver, options=f.options, **tolerances
            )
        except AssertionError as error:
            if error is f.raised:
                raise
            raise f.failure(str(error)) from error
        f.backward = True
        if x.device.type == "cpu" and not bool(torch.isfinite(path[-1].detach()).all()):
            raise f.failure("the answer is not finite")
        return [x.clone() for x in path]  # torchdiffeq's backward needs its answer unchanged

    return integrate_pieces(problem, solve_piece)


class Steps:
    """F on one piece of depth as torchdiffeq calls it, with its callbacks.

    Args:
        problem: what is being solved.
        piece: index of the piece of depth.
        stops: its start, the output times on it, and its end.

    Attributes:
        backward: set when the forward solve is over; later calls belong to the adjoint.
        known: F at the first stop, where it has been evaluated already.
        check: called with the piece, F's value and the state in the adjoint's evaluations, to look at the graph.
        raised: an assertion of F's own.
    """

    def __init__(self, problem: Problem, piece: int, stops: list[float]):
        self.problem, self.field, self.piece = problem, problem.field, piece
        self.evaluate = problem.field.piece(piece)
        self.stops, self.low, self.high = stops, min(stops), max(stops)
        self.options = _options(problem, piece, stops[-1]) | dict(problem.scheme.options)
        self.backward = False
        self.known: Tensor | None = None
        self.check: Callable[[int, list[Tensor], Tensor], None] | None = None
        self.raised: AssertionError | None = None
        self.last: tuple[float, float, Tensor | None] = (stops[0], 0.0, None)
        if problem.scheme.solver == "scipy_solver":
            pass  # SciPy reports no steps
        elif problem.scheme.adaptive:
            self.callback_accept_step, self.callback_reject_step = self._accept, self._reject
        else:
            self.callback_step = self._accept

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        time = min(self.high, max(self.low, float(t.detach())))
        if self.backward:
            self.problem.stats.vjps += 1
            with self.field.recompute():
                k = self.evaluate(time, x)
            if self.check is not None and k.requires_grad:
                self.check(self.piece, [k], x)
            return k
        if self.known is not None:
            k, self.known = self.known, None
            return k
        try:
            k = self.evaluate(time, x)
        except AssertionError as error:
            self.raised = error
            raise
        self.last = (time, self.last[1], k)
        return k

    def _accept(self, t: Tensor, x: Tensor, h: Tensor) -> None:
        self.problem.stats.accepted += 1
        self.last = (float(t.detach()), float(h.detach()), self.last[2])
        self.problem.stats.h.append(abs(self.last[1]))
        self.field.consistency.mark()

    def _reject(self, t: Tensor, x: Tensor, h: Tensor) -> None:
        self.problem.stats.rejected += 1
        self.last = (float(t.detach()), float(h.detach()), self.last[2])
        self.field.consistency.undo()

    def failure(self, message: str) -> Exception:
        """What broke down, from torchdiffeq's assertion."""
        t, h, k = self.last
        numbers = {"t": t, "h": h, "nfe": self.problem.stats.nfe}
        if not bool(torch.isfinite(self.problem.x0.detach()).all()):
            return NonFiniteStateError("the initial state holds NaN or infinity", **numbers)
        if k is not None and not bool(torch.isfinite(k).all()):
            return NonFiniteFunctionError("F returned NaN or infinity", **numbers)
        if "not finite" in message:
            return NonFiniteStateError("the state overflowed", **numbers)
        if "max_num_steps" in message:
            return StepBudgetError(f"the budget of {self.problem.scheme.max_steps} steps was used up", **numbers)
        if "underflow" in message:
            return StepUnderflowError("the step became too small to change t", **numbers)
        return InputError(f"torchdiffeq refused: {message}")


def _options(problem: Problem, piece: int, end: float) -> dict[str, Any]:
    """What makes torchdiffeq land on `end` and take the steps that were asked for."""
    scheme = problem.scheme
    if scheme.solver == "scipy_solver":
        return {}
    if not scheme.adaptive:
        return {"grid_constructor": _grid(problem, piece), "interp": "cubic"}
    landings = problem.landings()[piece]
    options = {"step_t": time_tensor(landings, problem.x0), "max_num_steps": scheme.max_steps}
    given = {"first_step": scheme.first_step, "norm": scheme.norm, "min_step": scheme.h_min, "max_step": scheme.h_max}
    defaults = {"min_step": 0.0, "max_step": math.inf}
    return options | {name: value for name, value in given.items() if value != defaults.get(name)}


def _grid(problem: Problem, piece: int) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """torchdiffeq's grid_constructor: the fixed steps of a piece of depth between the ends it is asked for."""
    points = [span.t_next for span in problem.spans() if span.piece == piece][:-1]

    def through(f: Any, x: Tensor, t: Tensor) -> Tensor:
        first, last = float(t[0]), float(t[-1])
        between = [p for p in points if min(first, last) < p < max(first, last)]
        return torch.cat([t[:1], time_tensor(sorted(between, reverse=last < first), t), t[-1:]])

    return through


def time_tensor(times: list[float], like: Tensor) -> Tensor:
    """Host times as a tensor on the device of `like`, in float64 where the device has it."""
    return torch.tensor(times, dtype=torch.float32 if like.device.type == "mps" else torch.float64, device=like.device)


@lru_cache(maxsize=1)
def _methods() -> dict[str, Method]:
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.solvers import AdaptiveStepsizeODESolver

    methods = {}
    for name, solver in SOLVERS.items():
        adaptive = name == "scipy_solver" or issubclass(solver, AdaptiveStepsizeODESolver)
        order = getattr(solver, "order", None)
        order = order if isinstance(order, int) else None
        graph = name != "scipy_solver"
        methods[name] = Method(order, not adaptive, adaptive, "torchdiffeq", _options_of(solver), graph)
    return methods


def _options_of(solver: type) -> tuple[str, ...]:
    """Names of the options of one of torchdiffeq's solvers that odenet does not set itself."""
    ours = {"self", "func", "y0", "rtol", "atol", "step_size", "grid_constructor", "step_t", "max_num_steps"}
    ours |= {"first_step", "norm", "min_step", "max_step"}
    names = {}
    for cls in solver.__mro__[:-1]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        names |= dict.fromkeys(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ours)
    return tuple(names)

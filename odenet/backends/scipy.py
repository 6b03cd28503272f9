"""SciPy's solvers behind odenet's problem and solution: a reference on the CPU, without gradients.

Unlike `solve_ivp`, steps end exactly at every knot, stop and jump, F is never shown a time outside [t0, t1],
evaluations and steps are counted, and a solve that breaks down raises odenet's errors. SciPy computes in float64; F
gets the state in its own dtype.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odenet.backends.pieces import integrate_pieces
from odenet.errors import InputError, NonFiniteFunctionError, NonFiniteStateError, StepBudgetError, StepUnderflowError
from odenet.solvers.problem import Problem
from odenet.solvers.registry import Method
from odenet.solvers.solution import Interpolant, Solution
from odenet.solvers.stepper import Span

OPTIONS = {
    "RK23": (3, ()),
    "RK45": (5, ()),
    "DOP853": (8, ()),
    "Radau": (5, ("jac", "jac_sparsity")),
    "BDF": (None, ("jac", "jac_sparsity")),
    "LSODA": (None, ("jac", "lband", "uband", "min_step")),
}
REAL_ONLY = ("Radau", "LSODA")


class Scipy:
    """The solvers of `scipy.integrate.solve_ivp`, stepped one step at a time."""

    refuses: tuple[str, ...] = ("controller", "norm", "h_min")

    def methods(self) -> dict[str, Method]:
        """SciPy's methods by name."""
        return _methods()

    def integrate(self, problem: Problem) -> Solution:
        """Solve `problem` with SciPy, under no_grad.

        Raises:
            SolveError: the solve broke down.
        """
        if problem.scheme.solver in REAL_ONLY and problem.x0.dtype.is_complex:
            others = ", ".join(name for name in OPTIONS if name not in REAL_ONLY)
            raise InputError(f"{problem.scheme.solver} takes real states only; use one of {others}")
        interpolants: list[Interpolant] | None = [] if problem.dense else None
        landings = problem.landings()

        def solve_piece(piece: int, stops: list[float], x: Tensor) -> list[Tensor]:
            walk = _Walk(problem, piece, x, interpolants)
            states = [x]
            for start, end in zip([stops[0], *landings[piece][:-1]], landings[piece], strict=True):
                due = [t for t in stops[1:] if min(start, end) <= t <= max(start, end) and t != start]
                states += walk.advance(start, end, due)
            return states

        with torch.no_grad():
            return integrate_pieces(problem, solve_piece, interpolants)


@lru_cache(maxsize=1)
def _methods() -> dict[str, Method]:
    return {
        name: Method(order, fixed=False, adaptive=True, reference="SciPy", options=options, differentiable=False)
        for name, (order, options) in OPTIONS.items()
    }


class _Walk:
    """SciPy's steps over one piece of depth.

    Args:
        problem: what is being solved.
        piece: index of the piece.
        x: state at its start.
        interpolants: to be filled with the steps' dense outputs, or None.
    """

    def __init__(self, problem: Problem, piece: int, x: Tensor, interpolants: list[Interpolant] | None):
        self.problem, self.piece, self.interpolants = problem, piece, interpolants
        self.f = problem.field.piece(piece)
        self.low, self.high = sorted(problem.pieces()[piece])
        self.like = x
        self.y = self._array(x)

    def advance(self, start: float, end: float, due: list[float]) -> list[Tensor]:
        """States at the times `due` between two stops; it goes on from where it was."""
        import scipy.integrate

        problem, scheme = self.problem, self.problem.scheme
        if not np.isfinite(self.y).all():
            raise NonFiniteStateError("the initial state holds NaN or infinity", **self._numbers(start, 0.0))
        rtol, atol = (self._tolerance(value) for value in scheme.tolerances)
        solver: Any = getattr(scipy.integrate, scheme.solver)(
            self._evaluate, start, self.y, end, rtol=rtol, atol=atol, **self._sizes(abs(end - start)), **scheme.options
        )
        states: list[Tensor] = []
        while solver.status == "running":
            if problem.stats.accepted >= scheme.max_steps:
                h = solver.step_size or 0.0
                raise StepBudgetError(
                    f"the budget of {scheme.max_steps} steps was used up", **self._numbers(solver.t, h)
                )
            message = solver.step()
            if solver.status == "failed":
                raise StepUnderflowError(f"SciPy gave up ({message})", **self._numbers(solver.t, solver.step_size or 0))
            problem.stats.accepted += 1
            problem.stats.h.append(float(abs(solver.t - solver.t_old)))
            passed = [t for t in due[len(states) :] if problem.direction * (t - solver.t) <= 0]
            output: Any = solver.dense_output() if passed or self.interpolants is not None else None
            states += [self._tensor(solver.y if t == solver.t else output(t)) for t in passed]
            if self.interpolants is not None:
                span = Span(self.piece, solver.t_old, solver.t, solver.t - solver.t_old)
                self.interpolants.append((span, lambda t, output=output: self._tensor(output(t))))
        self.y = solver.y
        return states

    def _numbers(self, t: float, h: float) -> dict[str, Any]:
        return {"t": float(t), "h": float(h), "nfe": self.problem.stats.nfe}

    def _sizes(self, length: float) -> dict[str, float]:
        sizes = {"max_step": self.problem.scheme.h_max}
        first = self.problem.scheme.first_step
        if first is not None and not self.problem.stats.accepted:
            sizes["first_step"] = min(first, length)
        return sizes if math.isfinite(sizes["max_step"]) else {k: v for k, v in sizes.items() if k != "max_step"}

    def _tolerance(self, value: Any) -> Any:
        return value if isinstance(value, float | int) else self._array(value.expand(self.like.shape))

    def _evaluate(self, t: float, y: np.ndarray) -> np.ndarray:
        k = self.f(min(self.high, max(self.low, float(t))), self._tensor(y))
        if not bool(torch.isfinite(k).all()):
            raise NonFiniteFunctionError("F returned NaN or infinity", **self._numbers(t, 0.0))
        return self._array(k)

    def _array(self, x: Tensor) -> np.ndarray:
        wide = torch.complex128 if x.dtype.is_complex else torch.float64
        return x.detach().to("cpu", wide).reshape(-1).numpy()

    def _tensor(self, y: np.ndarray) -> Tensor:
        return torch.as_tensor(y.copy()).to(self.like.device, self.like.dtype).reshape(self.like.shape)

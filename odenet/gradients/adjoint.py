"""The continuous adjoint, by torchdiffeq."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odenet.backends.torchdiffeq import Steps, integrate, time_tensor
from odenet.errors import InputError, UnknownNameError
from odenet.gradients.inputs import Inputs
from odenet.gradients.registry import gradients
from odenet.solvers.problem import Problem
from odenet.solvers.registry import backends, solvers
from odenet.solvers.scheme import Scheme, check_options, check_tolerance
from odenet.solvers.solution import Solution

OPTIONS = ("adjoint_rtol", "adjoint_atol", "adjoint_method", "adjoint_options")


class Adjoint:
    """Solve backwards, from t1 to t0, the equations of the state, of its cotangent and of the parameters' gradient.

        d/dt [x, a, θ̄] = [F, -aᵀ ∂F/∂x, -aᵀ ∂F/∂θ]

    Not exact: this discretises the derivative, it does not differentiate the discretisation, and the error shrinks with
    the tolerance or the step. Options are those of `torchdiffeq.odeint_adjoint`: adjoint_rtol, adjoint_atol,
    adjoint_method, adjoint_options (for instance {"norm": "seminorm"}).

    Reference:
        Chen et al. 2018, Neural Ordinary Differential Equations.
    """

    exact = False
    backends: tuple[str, ...] = ("torchdiffeq",)
    own_steps = True
    memory = "two states, the parameters and the activations of one evaluation"
    reference = "Chen et al. 2018"

    def solvers(self) -> list[str]:
        return list(solvers)

    def check(self, scheme: Scheme, options: Mapping[str, Any]) -> None:
        check_options("option of gradient='adjoint'", options, OPTIONS)
        method = options.get("adjoint_method")
        if method is not None:
            methods = backends["torchdiffeq"].methods()
            if not isinstance(method, str) or method not in methods:
                raise UnknownNameError("adjoint_method", method, methods)
            if scheme.adaptive and not methods[method].adaptive:
                raise InputError(
                    f"adjoint_method={method!r} needs a grid, but solver={scheme.solver!r} picks its own steps; use "
                    f"one of: {', '.join(name for name, other in methods.items() if other.adaptive)}, or give steps=N"
                )
        for name in ("adjoint_rtol", "adjoint_atol"):
            check_tolerance(name, options.get(name, 1.0))

    def solve(self, problem: Problem) -> Solution:
        from torchdiffeq import odeint, odeint_adjoint

        if not torch.is_grad_enabled():
            return backends["torchdiffeq"].integrate(problem)
        inputs = Inputs(problem)

        def for_piece(piece: int, f: Steps, x: Tensor) -> Any:
            with torch.enable_grad():
                k = f.evaluate(f.stops[0], x.detach())
                inputs.observe(piece, k)
                inputs.check_unrelated(piece, k)
            f.known, f.check = k.detach(), inputs.check
            tensors = inputs.piece(piece)
            if not tensors and not x.requires_grad:
                return odeint
            return partial(odeint_adjoint, adjoint_params=tuple(tensors), **_options(problem, f))

        return integrate(problem, for_piece)


def _options(problem: Problem, f: Steps) -> dict[str, Any]:
    """The user's options, completed so that the backward solve too lands on its end and keeps the forward grid.

    torchdiffeq solves a decreasing interval with negated times, and its adjoint sees them negated.
    """
    scheme = problem.scheme
    options = dict(scheme.gradient_options)
    inner = {k: v for k, v in f.options.items() if k != "norm"}
    method = options.get("adjoint_method", scheme.solver)
    if backends["torchdiffeq"].methods()[method].adaptive and method != "scipy_solver":
        stops = [problem.direction * t for t in f.stops[-2::-1]]
        inner = {"step_t": time_tensor(stops, problem.x0), "max_num_steps": scheme.max_steps}
    elif problem.direction < 0 and "grid_constructor" in inner:
        grid = inner["grid_constructor"]
        inner["grid_constructor"] = lambda f, x, t: -grid(f, x, -t)
    options["adjoint_options"] = inner | dict(options.get("adjoint_options") or {})
    return options


gradients.add("adjoint", Adjoint())

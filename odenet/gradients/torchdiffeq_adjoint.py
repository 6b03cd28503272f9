"""The continuous adjoint as torchdiffeq solves it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odenet.backends.torchdiffeq import Steps, integrate, time_tensor
from odenet.errors import InputError
from odenet.gradients.inputs import Inputs
from odenet.solvers.problem import Problem
from odenet.solvers.registry import backends
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution


def check(scheme: Scheme, options: Mapping[str, Any]) -> None:
    """Raise `InputError` if torchdiffeq's solver cannot walk back with these options."""
    solver, methods = options.get("adjoint_solver"), backends["torchdiffeq"].methods()
    if solver is not None and scheme.adaptive and not methods[solver].adaptive:
        raise InputError(
            f"adjoint_solver={solver!r} needs a grid, but solver={scheme.solver!r} picks its own steps; use "
            f"one of: {', '.join(name for name, other in methods.items() if other.adaptive)}, or give steps=N"
        )


def solve(problem: Problem) -> Solution:
    """Solve `problem` with `torchdiffeq.odeint_adjoint`."""
    from torchdiffeq import odeint, odeint_adjoint

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
    """odeint_adjoint's options, completed so that the backward solve too lands on its end and keeps the forward grid.

    torchdiffeq solves a decreasing interval with negated times, and its adjoint sees them negated.
    """
    scheme = problem.scheme
    given = dict(scheme.gradient_options)
    options: dict[str, Any] = {k: given[k] for k in ("adjoint_rtol", "adjoint_atol") if k in given}
    options["adjoint_method"] = method = given.get("adjoint_solver", scheme.solver)
    inner = {k: v for k, v in f.options.items() if k != "norm"}
    if backends["torchdiffeq"].methods()[method].adaptive and method != "scipy_solver":
        stops = [problem.direction * t for t in f.stops[-2::-1]]
        inner = {"step_t": time_tensor(stops, problem.x0), "max_num_steps": scheme.max_steps}
    elif problem.direction < 0 and "grid_constructor" in inner:
        grid = inner["grid_constructor"]
        inner["grid_constructor"] = lambda f, x, t: -grid(f, x, -t)
    norm = given.get("norm", "seminorm")
    if callable(norm):
        inner["norm"] = lambda parts: norm(tuple(parts[1:]))
    elif norm == "seminorm":
        inner["norm"] = norm
    options["adjoint_options"] = inner | dict(given.get("adjoint_options") or {})
    return options

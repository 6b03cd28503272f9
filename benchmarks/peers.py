"""The same problem given to odenet, torchdiffeq and diffrax: states at 20 times, and the calls of F that it took."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

import odenet
from odenet.solvers import backends, solvers
from odenet.solvers.scheme import DEFAULT_CONTROLLER
from tests.oracles.detest import DETEST, END, Problem

TIMES = tuple(float(t) for t in np.linspace(0, END, 21)[1:])
BUDGET = 50_000  # calls of F that one solve may take
OVER, FAILED = "over budget", "failed"
# Methods that share no more than the name: what they are instead is in docs/solvers.md.
OTHERS = {("torchdiffeq", "adaptive_heun"), ("torchdiffeq", "fehlberg2")}


class Answer(NamedTuple):
    """What a solver gave.

    Attributes:
        ys: states at `TIMES`, shape (20, dim), or None if it did not get there.
        nfe: calls of F.
        failure: `OVER` or `FAILED`, or None.
    """

    ys: np.ndarray | None
    nfe: int
    failure: str | None = None


class _OverBudgetError(Exception):
    pass


def by_odenet(problem: Problem, method: str, tolerance: float, controller: str = DEFAULT_CONTROLLER) -> Answer:
    """odenet.solve."""
    F, calls = _torch_function(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    try:
        with torch.no_grad():
            solution = odenet.solve(
                F, y0, (0.0, END), solver=method, rtol=tolerance, atol=tolerance, ts=TIMES, max_steps=BUDGET,
                controller=controller,
            )  # fmt: skip
    except _OverBudgetError:
        return Answer(None, BUDGET, OVER)
    except odenet.errors.SolveError:
        return Answer(None, len(calls), FAILED)
    return Answer(solution.ys.numpy(), len(calls))


def by_torchdiffeq(problem: Problem, method: str, tolerance: float) -> Answer:
    """torchdiffeq.odeint."""
    from torchdiffeq import odeint

    F, calls = _torch_function(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    times = torch.tensor((0.0, *TIMES), dtype=torch.float64)
    try:
        with torch.no_grad():
            ys = odeint(F, y0, times, method=method, rtol=tolerance, atol=tolerance)
    except _OverBudgetError:
        return Answer(None, BUDGET, OVER)
    except AssertionError:
        return Answer(None, len(calls), FAILED)
    assert isinstance(ys, torch.Tensor)
    return Answer(ys[1:].numpy(), len(calls))


# The name in diffrax, and the fewest calls of F that a step takes there.
DIFFRAX = {
    "adaptive_heun": ("Heun", 2),
    "reversible_heun": ("ReversibleHeun", 1),
    "bosh3": ("Bosh3", 3),
    "dopri5": ("Dopri5", 6),
    "tsit5": ("Tsit5", 6),
    "dopri8": ("Dopri8", 13),
    "implicit_euler": ("ImplicitEuler", 2),
    "kvaerno3": ("Kvaerno3", 3),
    "kvaerno4": ("Kvaerno4", 4),
    "kvaerno5": ("Kvaerno5", 6),
}


def by_diffrax(problem: Problem, method: str, tolerance: float) -> Answer:
    """diffrax.diffeqsolve with its I controller, an initial step and a root finder of its own choice.

    Its budget is one of steps; what took more calls than `BUDGET` in the end counts as over budget too.
    """
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    F, calls = _jax_function(problem.name)
    name, calls_a_step = DIFFRAX[method]
    jax.effects_barrier()
    calls.clear()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(F),
        getattr(diffrax, name)(),
        0.0,
        END,
        None,
        jnp.array(problem.y0),
        saveat=diffrax.SaveAt(ts=jnp.array(TIMES)),
        stepsize_controller=diffrax.PIDController(rtol=jnp.array(tolerance), atol=jnp.array(tolerance)),
        max_steps=BUDGET // calls_a_step,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    ys = np.asarray(solution.ys)
    jax.effects_barrier()
    if len(calls) > BUDGET or bool(solution.result == diffrax.RESULTS.max_steps_reached):
        return Answer(None, BUDGET, OVER)
    if bool(solution.result != diffrax.RESULTS.successful) or not np.isfinite(ys).all():
        return Answer(None, len(calls), FAILED)
    return Answer(ys, len(calls))


@cache
def _jax_function(name: str) -> tuple[Callable[[Any, Any, Any], Any], list[None]]:
    """One function a problem, so that it is compiled once for each method."""
    import jax
    import jax.numpy as jnp

    problem = next(problem for problem in DETEST if problem.name == name)
    calls: list[None] = []

    def F(t: Any, y: Any, args: Any) -> Any:
        jax.debug.callback(lambda: calls.append(None))
        return problem.F(t, y, jnp)

    return F, calls


def _torch_function(problem: Problem) -> tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], list[None]]:
    calls: list[None] = []

    def F(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if len(calls) == BUDGET:
            raise _OverBudgetError
        calls.append(None)
        return problem.F(t, y, torch)

    return F, calls


def libraries() -> dict[str, tuple[Callable[..., Answer], tuple[str, ...]]]:
    """For each library that is installed: how it is called, and its adaptive methods among ours."""
    native = tuple(name for name, solver in solvers.items() if solver.adaptive)
    found: dict[str, tuple[Callable[..., Answer], tuple[str, ...]]] = {"odenet": (by_odenet, native)}
    if find_spec("torchdiffeq"):
        theirs = backends["torchdiffeq"].methods()
        able = tuple(name for name in native if name in theirs and theirs[name].adaptive)
        found["torchdiffeq"] = (by_torchdiffeq, able)
    if find_spec("diffrax"):
        found["diffrax"] = (by_diffrax, tuple(name for name in native if name in DIFFRAX))
    return found

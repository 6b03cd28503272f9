"""The same problem given to odenet, torchdiffeq and diffrax: states at 20 times, and the calls of F that it took."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

import odenet
from odenet.solvers.scheme import DEFAULT_CONTROLLER
from tests.oracles.detest import DETEST, END, Problem

TIMES = tuple(float(t) for t in np.linspace(0, END, 21)[1:])
MAX_STEPS = 200_000


class Answer(NamedTuple):
    """What a solver gave.

    Attributes:
        ys: states at `TIMES`, shape (20, dim), or None after a failure.
        nfe: calls of F.
    """

    ys: np.ndarray | None
    nfe: int


def by_odenet(problem: Problem, method: str, tolerance: float, controller: str = DEFAULT_CONTROLLER) -> Answer:
    """odenet.solve."""
    F, calls = _torch_function(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    try:
        with torch.no_grad():
            solution = odenet.solve(
                F, y0, (0.0, END), solver=method, rtol=tolerance, atol=tolerance, ts=TIMES, max_steps=MAX_STEPS,
                controller=controller,
            )  # fmt: skip
    except odenet.errors.SolveError:
        return Answer(None, len(calls))
    return Answer(solution.ys.numpy(), len(calls))


def by_torchdiffeq(problem: Problem, method: str, tolerance: float) -> Answer:
    """torchdiffeq.odeint."""
    from torchdiffeq import odeint

    F, calls = _torch_function(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64)
    times = torch.tensor((0.0, *TIMES), dtype=torch.float64)
    try:
        with torch.no_grad():
            ys = odeint(
                F, y0, times, method=method, rtol=tolerance, atol=tolerance, options={"max_num_steps": MAX_STEPS}
            )
    except AssertionError:
        return Answer(None, len(calls))
    assert isinstance(ys, torch.Tensor)
    return Answer(ys[1:].numpy(), len(calls))


DIFFRAX = {"adaptive_heun": "Heun", "bosh3": "Bosh3", "dopri5": "Dopri5", "tsit5": "Tsit5", "dopri8": "Dopri8"}


def by_diffrax(problem: Problem, method: str, tolerance: float) -> Answer:
    """diffrax.diffeqsolve with its I controller and an initial step of its own choice."""
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    F, calls = _jax_function(problem.name)
    jax.effects_barrier()
    calls.clear()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(F),
        getattr(diffrax, DIFFRAX[method])(),
        0.0,
        END,
        None,
        jnp.array(problem.y0),
        saveat=diffrax.SaveAt(ts=jnp.array(TIMES)),
        stepsize_controller=diffrax.PIDController(rtol=jnp.array(tolerance), atol=jnp.array(tolerance)),
        max_steps=MAX_STEPS,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    ys = np.asarray(solution.ys)
    jax.effects_barrier()
    failed = bool(solution.result != diffrax.RESULTS.successful) or not np.isfinite(ys).all()
    return Answer(None if failed else ys, len(calls))


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
        calls.append(None)
        return problem.F(t, y, torch)

    return F, calls


def libraries() -> dict[str, tuple[Callable[[Problem, str, float], Answer], tuple[str, ...]]]:
    """For each library that is installed: how it is called, and its methods among ours."""
    native = tuple(name for name in odenet.list_solvers() if name in EXPLICIT)
    found = {"odenet": (by_odenet, native)}
    if find_spec("torchdiffeq"):
        theirs = odenet.list_solvers("torchdiffeq")
        found["torchdiffeq"] = (by_torchdiffeq, tuple(name for name in native if name in theirs))
    if find_spec("diffrax"):
        found["diffrax"] = (by_diffrax, tuple(DIFFRAX))
    return found


EXPLICIT = (
    "adaptive_heun", "fehlberg2", "bosh3", "fehlberg45", "cash_karp", "dopri5", "tsit5", "vern7", "dopri8",
)  # fmt: skip

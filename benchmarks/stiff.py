"""Stiff problems: odenet's implicit methods beside SciPy's Radau and BDF, as a table in Markdown.

    python -m benchmarks.stiff

Each row is one solve: evaluations of F (without those, or the vector-Jacobian products, that make a Jacobian), accepted
and rejected steps (SciPy: accepted), seconds of one core, and the largest relative error of the last state against
SciPy's Radau at a tolerance of 1e-12 (heat: the largest error against the answer in sines).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.nn import functional

import odenet

SOLVERS = ("implicit_euler", "trapezoid", "trbdf2", "kvaerno3", "kvaerno5", "radau5")
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def van_der_pol(t, x):
    return torch.stack([x[1], 1000 * (1 - x[0] ** 2) * x[1] - x[0]])


def robertson(t, x):
    a, b, c = x
    return torch.stack([-0.04 * a + 1e4 * b * c, 0.04 * a - 1e4 * b * c - 3e7 * b * b, 3e7 * b * b])


def slope_of(F: Callable[..., Tensor]) -> Callable[[float, np.ndarray], np.ndarray]:
    return lambda t, y: F(t, torch.from_numpy(y)).numpy()


def row(problem: str, solver: str, tolerance: float, nfe: object, steps: str, seconds: float, error: float) -> None:
    print(f"| {problem} | {solver} | {tolerance:g} | {nfe} | {steps} | {seconds:.2f} | {error:.1e} |", flush=True)


def small(problem: str, F: Callable[..., Tensor], x0: list[float], end: float, atol: float) -> None:
    """A problem of a few unknowns."""
    truth = solve_ivp(slope_of(F), (0, end), x0, "Radau", rtol=1e-12, atol=1e-12 * atol).y[:, -1]
    for rtol, solvers in ((1e-4, SOLVERS), (1e-6, SOLVERS[-2:])):
        for solver in solvers:
            began = time.process_time()
            with torch.no_grad():
                s = odenet.solve(F, torch.tensor(x0), (0, end), solver=solver, rtol=rtol, atol=atol * rtol)
            seconds = time.process_time() - began
            error = np.abs(s.last.numpy() / truth - 1).max()
            row(problem, f"`{solver}`", rtol, s.stats.nfe, f"{s.stats.accepted} + {s.stats.rejected}", seconds, error)
        for name in ("Radau", "BDF"):
            began = time.process_time()
            peer = solve_ivp(slope_of(F), (0, end), x0, name, rtol=rtol, atol=atol * rtol)
            seconds = time.process_time() - began
            error = np.abs(peer.y[:, -1] / truth - 1).max()
            row(problem, f"SciPy {name}", rtol, peer.nfev, str(len(peer.t) - 1), seconds, error)


def heat(n: int) -> None:
    """x' = Δx on n x n points: n² unknowns, rates up to 8 (n + 1)²."""
    stencil = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None] * (n + 1) ** 2
    k = torch.arange(1.0, n + 1)
    sines = torch.sin(math.pi * torch.outer(k, k) / (n + 1)) * math.sqrt(2 / (n + 1))
    rates = -4 * (n + 1) ** 2 * torch.sin(math.pi * k / (2 * (n + 1))) ** 2
    s = torch.linspace(0, 1, n + 2)[1:-1]
    x0 = ((s * (1 - s) ** 2)[:, None] * torch.sin(3 * math.pi * s) + 0.05 * torch.randn(n, n))[None, None]
    truth = sines @ (torch.exp(0.1 * (rates[:, None] + rates)) * (sines @ x0 @ sines)) @ sines
    for solver in ("dopri5", "trbdf2", "kvaerno5", "radau5"):
        began = time.process_time()
        with torch.no_grad():
            found = odenet.solve(
                lambda t, x: functional.conv2d(x, stencil, padding=1), x0, (0, 0.1), solver=solver, rtol=1e-4, atol=1e-5
            )
        seconds, stats = time.process_time() - began, found.stats
        error = float((found.last - truth).abs().max())
        row(f"heat {n} x {n}", f"`{solver}`", 1e-4, stats.nfe, f"{stats.accepted} + {stats.rejected}", seconds, error)


if __name__ == "__main__":
    torch.manual_seed(0)
    print("| problem | solver | rtol | NFE | steps | CPU seconds | error |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    small("van der Pol, μ = 1000, to 2000", van_der_pol, [2.0, 0.0], 2000.0, 1.0)
    small("Robertson, to 1e5", robertson, [1.0, 0.0, 0.0], 1e5, 1e-4)
    heat(64)

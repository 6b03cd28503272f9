"""A batch of mixed stiffness, solved sample by sample: odenet against torchode, torchdiffeq and diffrax under vmap.

Van der Pol's equation with mu from 1 to 100 in one batch. Every library takes Dormand and Prince's method of order 5 at
the same tolerance, in float64. Measurements alternate between the libraries; it prints medians, and ratios to odenet.

    OMP_NUM_THREADS=1 python -m benchmarks.per_sample                  # the tables, and what they were measured on
    python -m benchmarks.per_sample --batch 256 --repeats 5 --t1 2

The gradient is that of the sum of squares of x(t1), for x(0) and mu.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import odenet
from benchmarks.workloads import Call, Row


def van_der_pol(t: Any, x: Tensor, mu: Tensor) -> Tensor:
    """p' = v, v' = mu (1 - p^2) v - p, for rows (p, v)."""
    p, v = x[:, 0], x[:, 1]
    return torch.stack([v, mu * (1 - p * p) * v - p], 1)


class Counted:
    """F for one value of mu a sample, with the number of its calls and of the rows that it was called with."""

    def __init__(self, mu: Tensor):
        self.mu, self.calls, self.rows = mu, 0, 0
        self.shapes: list[int] = []

    def __call__(self, t: Any, x: Tensor, *args: Tensor) -> Tensor:
        self.calls += 1
        self.rows += x.shape[0]
        self.shapes.append(x.shape[0])
        return van_der_pol(t, x, *(args or (self.mu,)))


class Entry(NamedTuple):
    """A library: how it solves the batch, how often it then evaluates F, and the gradient.

    Attributes:
        solve: x(t1).
        count: () -> (calls of F, evaluations summed over the samples), or None where that cannot be seen.
        gradient: for x(0) and mu.
    """

    solve: Callable[[], Any]
    count: Callable[[], tuple[int, int]] | None
    gradient: Callable[[], Any]


def odenet_entry(mu: Tensor, x0: Tensor, t1: float, tol: float, compile: bool = False) -> Entry:
    def solved(F: Any = van_der_pol, x: Tensor = x0, m: Tensor = mu) -> Any:
        return odenet.solve(
            F, x, (0.0, t1), rtol=tol, atol=tol, args=(m,), per_sample=True, per_sample_args=(0,), compile=compile
        )  # fmt: skip

    def solve(F: Any = van_der_pol) -> Tensor:
        return solved(F).last

    def count() -> tuple[int, int]:
        stats = solved().stats
        assert stats.samples is not None
        return stats.nfe, stats.samples.padded

    gradient = partial(_gradient, lambda x, m: solved(van_der_pol, x, m).last, x0, mu)
    return Entry(solve, count if compile else lambda: _counted(solve, mu), gradient)


def torchdiffeq_entry(mu: Tensor, x0: Tensor, t1: float, tol: float) -> Entry:
    torchdiffeq = importlib.import_module("torchdiffeq")
    ts = torch.tensor([0.0, t1], dtype=x0.dtype)

    def solve(F: Any = None, x: Tensor = x0, m: Tensor = mu) -> Tensor:
        F = F or (lambda t, x: van_der_pol(t, x, m))
        return torchdiffeq.odeint(F, x, ts, rtol=tol, atol=tol, method="dopri5")[-1]

    return Entry(solve, lambda: _counted(solve, mu), partial(_gradient, partial(solve, None), x0, mu))


def torchode_entry(mu: Tensor, x0: Tensor, t1: float, tol: float) -> Entry:
    torchode = importlib.import_module("torchode")
    ends = torch.zeros(len(x0), dtype=x0.dtype), torch.full((len(x0),), t1, dtype=x0.dtype)

    def solve(F: Any = None, x: Tensor = x0, m: Tensor = mu) -> Tensor:
        term = torchode.ODETerm(F or (lambda t, x: van_der_pol(t, x, m)))
        control = torchode.IntegralController(atol=tol, rtol=tol, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)
        return solver.solve(torchode.InitialValueProblem(x, *ends)).ys[:, -1]

    return Entry(solve, lambda: _counted(solve, mu), partial(_gradient, partial(solve, None), x0, mu))


def diffrax_entry(mu: Tensor, x0: Tensor, t1: float, tol: float) -> Entry:
    jax, diffrax = importlib.import_module("jax"), importlib.import_module("diffrax")
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy

    def field(t: Any, x: Any, m: Any) -> Any:
        return jnp.stack([x[1], m * (1 - x[0] * x[0]) * x[1] - x[0]])

    def one(x: Any, m: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Dopri5(), 0.0, t1, None, x, m, max_steps=100_000,
            stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol),
        )  # fmt: skip

    whole = jax.jit(lambda x, m: jax.vmap(one)(x, m).ys[:, -1])
    slope = jax.jit(jax.grad(lambda x, m: (jax.vmap(one)(x, m).ys[:, -1] ** 2).sum(), (0, 1)))
    steps = jax.jit(lambda x, m: jax.vmap(one)(x, m).stats["num_steps"])
    x, m = jnp.asarray(x0.numpy()), jnp.asarray(mu.numpy())

    def count() -> tuple[int, int]:  # six stages a step, for every sample until the slowest is done
        rounds = int(steps(x, m).max())
        return 6 * rounds, 6 * rounds * len(x)

    return Entry(lambda: whole(x, m).block_until_ready(), count, lambda: jax.block_until_ready(slope(x, m)))


ENTRIES = {
    "odenet, eager": odenet_entry,
    "odenet, compiled": partial(odenet_entry, compile=True),
    "torchode": torchode_entry,
    "torchdiffeq": torchdiffeq_entry,
    "diffrax": diffrax_entry,
}


def _gradient(solve: Callable[[Tensor, Tensor], Tensor], x0: Tensor, mu: Tensor) -> tuple[Any, Any]:
    x, m = x0.clone().requires_grad_(), mu.clone().requires_grad_()
    solve(x, m).square().sum().backward()
    return x.grad, m.grad


def rows() -> list[Row]:
    """The rows of this batch in the table of `benchmarks/speed.py`."""
    name = "mixed stiffness, per sample, batch 64"
    return [Row(f"{name}, forward", contenders), Row(f"{name}, gradient", differentiated)]


def contenders() -> dict[str, Call]:
    """The columns of the first row; its floor are the evaluations of F that an eager solve asks for, alone."""
    problem = batch(64)
    shapes, (mu, x0, _, _) = _shapes(*problem), problem

    def floor() -> None:
        for count in shapes:
            van_der_pol(None, x0[:count], mu[:count])

    calls: dict[str, Call] = {name: entry.solve for name, entry in _entries(*problem).items()}
    return {name: partial(_without_graph, call) for name, call in (calls | {"floor": floor}).items()}


def differentiated() -> dict[str, Call]:
    """The columns of the gradient's row; its floor has the vector-Jacobian product of each of these evaluations too."""
    problem = batch(64)
    shapes, (mu, x0, _, _) = _shapes(*problem), problem

    def floor() -> None:
        for count in shapes:
            x, m = x0[:count].clone().requires_grad_(), mu[:count].clone().requires_grad_()
            torch.autograd.grad(van_der_pol(None, x, m), (x, m), x.detach())

    return {name: entry.gradient for name, entry in _entries(*problem).items()} | {"floor": floor}


def _entries(*problem: Any) -> dict[str, Entry]:
    return {name: make(*problem) for name, make in ENTRIES.items() if find_spec(name.split(",")[0])}


def _shapes(*problem: Any) -> list[int]:
    """How many rows each evaluation of an eager solve has."""
    F = Counted(problem[0])
    _without_graph(partial(odenet_entry(*problem).solve, F))
    return list(F.shapes)


@torch.no_grad()
def _without_graph(call: Call) -> Any:
    return call()


def batch(size: int, t1: float = 3.0, tol: float = 1e-5) -> tuple[Tensor, Tensor, float, float]:
    """mu, x0, t1 and tolerance."""
    mu = torch.logspace(0, 2, size, dtype=torch.float64)
    return mu, torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(size, 1), t1, tol


def _counted(solve: Callable[[Any], Any], mu: Tensor) -> tuple[int, int]:
    F = Counted(mu)
    solve(F)
    return F.calls, F.rows


def alone(mu: Tensor, x0: Tensor, t1: float, tol: float) -> int:
    """Evaluations of F when odenet solves each sample in a batch of its own, summed."""
    total = 0
    for m, x in zip(mu.split(1), x0.split(1), strict=True):
        total += odenet.solve(lambda t, x, m=m: van_der_pol(t, x, m), x, (0.0, t1), rtol=tol, atol=tol).stats.nfe
    return total


def truth(mu: Tensor, x0: Tensor, t1: float) -> Tensor:
    """x(t1) by SciPy's LSODA at 1e-12."""
    ends = [
        solve_ivp(
            lambda t, x, m=m: [x[1], m * (1 - x[0] * x[0]) * x[1] - x[0]], (0.0, t1), x, "LSODA",
            rtol=1e-12, atol=1e-12,
        ).y[:, -1]
        for m, x in zip(mu.tolist(), x0.tolist(), strict=True)
    ]  # fmt: skip
    return torch.tensor(np.array(ends))


def measure(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Milliseconds of each, timed in turn: medians."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--t1", type=float, default=3.0)
    parser.add_argument("--tol", type=float, default=1e-5)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    problem = mu, x0, *_ = batch(options.batch, options.t1, options.tol)
    entries = {}
    for name, make in ENTRIES.items():
        try:
            entries[name] = make(*problem)
        except ImportError:
            print(f"{name} is not installed")
    with torch.no_grad():
        answer, each = truth(mu, x0, options.t1), alone(*problem)
        times = measure({name: entry.solve for name, entry in entries.items()}, options.repeats)
    slopes = measure({name: entry.gradient for name, entry in entries.items()}, options.repeats)
    print("| | time | ratio | gradient | calls of F | evaluations, summed over samples | to those alone | error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, entry in entries.items():
        with torch.no_grad():
            error = float((torch.from_numpy(np.asarray(entry.solve()).copy()) - answer).abs().max())
            calls, rows = entry.count() if entry.count else (0, 0)
        cells = [f"{times[name]:.3g} ms", f"{times[name] / times['odenet, compiled']:.2f}", f"{slopes[name]:.3g} ms"]
        cells += [str(calls), str(rows), f"{rows / each:.2f}", f"{error:.1e}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    threads = torch.get_num_threads()
    print(
        f"\nbatch {options.batch}, mu 1 to 100, t in [0, {options.t1:g}], rtol = atol = {options.tol:g}, float64; "
        f"{threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}, {platform.machine()}; medians of "
        f"{options.repeats}"
    )


if __name__ == "__main__":
    main()

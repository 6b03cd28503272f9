"""A batch of mixed stiffness, solved sample by sample: odenet against torchode, torchdiffeq and diffrax under vmap.

Van der Pol's equation with mu from 1 to 100 in one batch. Every library takes Dormand and Prince's method of order 5 at
the same tolerance, in float64. Measurements alternate between the libraries; it prints medians, and ratios to odenet.

    OMP_NUM_THREADS=1 python -m benchmarks.per_sample                  # the table, and what it was measured on
    python -m benchmarks.per_sample --batch 256 --repeats 5 --t1 2
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
    """A library: how it solves the batch, and how often it then evaluates F.

    Attributes:
        solve: x(t1).
        count: () -> (calls of F, evaluations summed over the samples), or None where that cannot be seen.
    """

    solve: Callable[[], Any]
    count: Callable[[], tuple[int, int]] | None


def odenet_entry(mu: Tensor, x0: Tensor, t1: float, tol: float, compile: bool = False) -> Entry:
    def solved(F: Any = van_der_pol) -> Any:
        return odenet.solve(
            F, x0, (0.0, t1), rtol=tol, atol=tol, args=(mu,), per_sample=True, per_sample_args=(0,), compile=compile
        )  # fmt: skip

    def solve(F: Any = van_der_pol) -> Tensor:
        return solved(F).last

    def count() -> tuple[int, int]:
        stats = solved().stats
        assert stats.samples is not None
        return stats.nfe, stats.samples.evaluated

    return Entry(solve, count if compile else lambda: _counted(solve, mu))


def torchdiffeq_entry(mu: Tensor, x0: Tensor, t1: float, tol: float) -> Entry:
    torchdiffeq = importlib.import_module("torchdiffeq")
    ts = torch.tensor([0.0, t1], dtype=x0.dtype)

    def solve(F: Any = None) -> Tensor:
        F = F or (lambda t, x: van_der_pol(t, x, mu))
        return torchdiffeq.odeint(F, x0, ts, rtol=tol, atol=tol, method="dopri5")[-1]

    return Entry(solve, lambda: _counted(solve, mu))


def torchode_entry(mu: Tensor, x0: Tensor, t1: float, tol: float) -> Entry:
    torchode = importlib.import_module("torchode")
    ends = torch.zeros(len(x0), dtype=x0.dtype), torch.full((len(x0),), t1, dtype=x0.dtype)

    def solve(F: Any = None) -> Tensor:
        term = torchode.ODETerm(F or (lambda t, x: van_der_pol(t, x, mu)))
        control = torchode.IntegralController(atol=tol, rtol=tol, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)
        return solver.solve(torchode.InitialValueProblem(x0, *ends)).ys[:, -1]

    return Entry(solve, lambda: _counted(solve, mu))


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
    steps = jax.jit(lambda x, m: jax.vmap(one)(x, m).stats["num_steps"])
    x, m = jnp.asarray(x0.numpy()), jnp.asarray(mu.numpy())

    def count() -> tuple[int, int]:  # six stages a step, for every sample until the slowest is done
        rounds = int(steps(x, m).max())
        return 6 * rounds, 6 * rounds * len(x)

    return Entry(lambda: whole(x, m).block_until_ready(), count)


ENTRIES = {
    "odenet, eager": odenet_entry,
    "odenet, compiled": partial(odenet_entry, compile=True),
    "torchode": torchode_entry,
    "torchdiffeq": torchdiffeq_entry,
    "diffrax": diffrax_entry,
}


def rows() -> list[Row]:
    """The row of this batch in the table of `benchmarks/speed.py`."""
    return [Row("mixed stiffness, per sample, batch 64, forward", contenders)]


def contenders() -> dict[str, Call]:
    """The columns of that row; its floor are the evaluations of F that the eager solve asks for, and nothing else."""
    problem = batch(64)
    entries = {name: make(*problem) for name, make in ENTRIES.items() if find_spec(name.split(",")[0])}
    F = Counted(problem[0])
    entries["odenet, eager"].solve(F)
    shapes, (mu, x0, _, _) = list(F.shapes), problem

    def floor() -> None:
        for count in shapes:
            van_der_pol(None, x0[:count], mu[:count])

    calls: dict[str, Call] = {name: entry.solve for name, entry in entries.items()}
    return {name: partial(_without_graph, call) for name, call in (calls | {"floor": floor}).items()}


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


def measure(entries: dict[str, Entry], repeats: int) -> dict[str, list[float]]:
    """Seconds of each solve, in turn."""
    for entry in entries.values():
        entry.solve()
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(repeats):
        for name, entry in entries.items():
            begin = time.perf_counter()
            entry.solve()
            times[name].append(time.perf_counter() - begin)
    return times


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
        times = measure(entries, options.repeats)
        ours = statistics.median(times["odenet, eager"])
        print("| | time | ratio | calls of F | evaluations, summed over samples | to the sum of each alone | error |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, entry in entries.items():
            middle = statistics.median(times[name])
            error = float((torch.from_numpy(np.asarray(entry.solve()).copy()) - answer).abs().max())
            calls, rows = entry.count() if entry.count else (0, 0)
            print(
                f"| {name} | {middle * 1e3:.0f} ms | {middle / ours:.2f} | {calls} | {rows} | {rows / each:.2f} | "
                f"{error:.1e} |"
            )
    threads = torch.get_num_threads()
    print(
        f"\nbatch {options.batch}, mu 1 to 100, t in [0, {options.t1:g}], rtol = atol = {options.tol:g}, float64; "
        f"{threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}, {platform.machine()}; medians of "
        f"{options.repeats}"
    )


if __name__ == "__main__":
    main()

"""How the cost of a solve grows with the number of steps, with the batch and with the state: slopes of log cost.

    OMP_NUM_THREADS=1 python -m benchmarks.slopes [--repeats 3] [--docs]

Euler and RK4 on Linear(d, 64)-tanh-Linear(64, d), the forward pass. A slope of 1 is a cost in proportion; less means
that something else than F takes the time. The columns of a row are timed in turn; least times of a few.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import odenet

STEPS, BATCHES, WIDTHS = (10, 100, 1000, 10_000), (1, 10, 100, 1000, 10_000), (2, 16, 128, 1024)
Call = Callable[[], Any]


class Net(nn.Module):
    """Linear(d, 64), tanh, Linear(64, d)."""

    def __init__(self, d: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 64), nn.Tanh(), nn.Linear(64, d))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


def loop(F: nn.Module, x: Tensor, solver: str, steps: int) -> Tensor:
    """The same steps written by hand."""
    h, t = 1 / steps, torch.zeros(())
    for n in range(steps):
        s = t + n * h
        k = F(s, x)
        if solver == "rk4":
            k2 = F(s + h / 2, x + h / 2 * k)
            k3 = F(s + h / 2, x + h / 2 * k2)
            k = (k + 2 * k2 + 2 * k3 + F(s + h, x + h * k3)) / 6
        x = x + h * k
    return x


def contenders(F: Net, x: Tensor, solver: str, steps: int) -> dict[str, Call]:
    """What is timed."""
    from torchdiffeq import odeint

    numerics: dict[str, Any] = {"solver": solver, "steps": steps, "max_steps": 10_000}
    ts, options = torch.tensor([0.0, 1.0]), {"step_size": 1 / steps}
    theirs = "rk4" if solver == "rk4" else "euler"
    calls: dict[str, Call] = {
        "odenet, eager": partial(odenet.solve, F, x, compile=False, **numerics),
        "odenet, compiled": partial(odenet.solve, F, x, compile=True, **numerics),
        "torchdiffeq": partial(odeint, F, x, ts, method=theirs, options=options),
        "plain loop": partial(loop, F, x, solver, steps),
    }
    if solver == "euler" and find_spec("diffrax"):
        calls["diffrax"] = by_diffrax(F, x, steps)
    return calls


def by_diffrax(F: Net, x: Tensor, steps: int) -> Call:
    """diffrax's Euler under jit."""
    import diffrax
    import jax
    import jax.numpy as jnp

    (V, c), (W, b) = (
        (jnp.asarray(m.weight.detach().numpy().T), jnp.asarray(m.bias.detach().numpy()))
        for m in F.net
        if isinstance(m, nn.Linear)
    )
    field = lambda t, x, args: jnp.tanh(x @ V + c) @ W + b  # noqa: E731
    function = jax.jit(
        lambda x: diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Euler(), 0.0, 1.0, 1 / steps, x,
            stepsize_controller=diffrax.ConstantStepSize(), max_steps=steps + 1,
        ).ys[-1]  # type: ignore[index]
    )  # fmt: skip
    start = jnp.asarray(x.numpy())
    return lambda: jax.block_until_ready(function(start))


def measure(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Milliseconds of each."""
    best = dict.fromkeys(calls, math.inf)
    with torch.no_grad():
        for turn in range(repeats + 1):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                if turn:
                    best[name] = min(best[name], (time.perf_counter() - begin) * 1e3)
    return best


def slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Slope of log time over log size, by least squares."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(t) for t in times]).slope


def sweeps(quick: bool) -> dict[str, tuple[tuple[int, ...], Callable[[int], dict[str, Call]]]]:
    """What grows: its sizes, and what is timed at each."""
    F, small = Net(2), torch.randn(32, 2)
    steps = STEPS[:-1] if quick else STEPS
    found: dict[str, tuple[tuple[int, ...], Callable[[int], dict[str, Call]]]] = {
        "Euler steps, batch 32, state 2": (steps, lambda n: contenders(F, small, "euler", n)),
        "RK4 steps, batch 32, state 2": (steps, lambda n: contenders(F, small, "rk4", n)),
        "batch, 100 Euler steps, state 2": (BATCHES, lambda n: contenders(F, torch.randn(n, 2), "euler", 100)),
    }
    nets = {d: Net(d) for d in WIDTHS}
    found["state, 100 Euler steps, batch 32"] = (
        WIDTHS, lambda d: contenders(nets[d], torch.randn(32, d), "euler", 100)
    )  # fmt: skip
    return found


def main() -> None:
    """Time, print, and write docs/slopes.md if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="at most 1,000 steps")
    parser.add_argument("--docs", action="store_true", help="write docs/slopes.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    lines = [
        "# Cost as steps, batch and state grow", "",
        f"Made by `python -m benchmarks.slopes --docs`: {threads} thread{'s' if threads > 1 else ''}, float32, torch "
        f"{torch.__version__}; F is Linear(d, 64)-tanh-Linear(64, d); milliseconds, the least of {options.repeats}, "
        "and the slope of log time over log size. The columns of a row are timed in turn.",
    ]  # fmt: skip
    for name, (sizes, make) in sweeps(options.quick).items():
        table = {size: measure(make(size), options.repeats) for size in sizes}
        columns = list(table[sizes[0]])
        lines += ["", f"| {name} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
        lines += [f"| {size:,} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |" for size, row in table.items()]
        slopes = (slope(sizes, [table[size][c] for size in sizes]) for c in columns)
        lines.append("| slope | " + " | ".join(f"{value:.2f}" for value in slopes) + " |")
        print("\n".join(lines[-len(sizes) - 4 :]), flush=True)
    if options.docs:
        (Path(__file__).parents[1] / "docs" / "slopes.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

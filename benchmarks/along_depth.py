"""Compiled and eager solves where F changes along depth, or answers lie inside given steps: the tables of docs/speed.md
and docs/per_sample.md.

    OMP_NUM_THREADS=1 python -m benchmarks.along_depth

64 samples of 8 numbers, F an MLP(8, width=32) in float32. Calls of both alternate; medians in milliseconds. The
gradient is that of the sum of squares of the answers, for the state and all parameters.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import odenet
from odenet.depth import DepthWeights
from odenet.residual import MLP

BATCH, FEATURES, REPEATS = 64, 8, 15
ADAPTIVE = {"rtol": 1e-4, "atol": 1e-4, "gradient": "checkpoint"}
GIVEN = {"solver": "rk4", "steps": 20, "gradient": "checkpoint"}
TIMES = torch.linspace(0, 1, 51, dtype=torch.float64)


def network() -> MLP:
    return MLP(FEATURES, width=32, norm="none", time="concat")


def cases() -> dict[str, tuple[DepthWeights, dict[str, Any], Tensor | None]]:
    """For each row weights, scheme, and times of the answer."""
    tied, untied = odenet.depth.constant()(network()), odenet.depth.piecewise_constant(4)(network())
    kinds = {
        "piecewise linear, 4 pieces": odenet.depth.piecewise_linear(4),
        "cubic spline, 2 pieces": odenet.depth.bspline(3, 2),
        "Chebyshev, 4 functions": odenet.depth.chebyshev(4),
        "low rank 1 over a cubic spline": odenet.depth.low_rank(1, odenet.depth.bspline(3, 2)),
    }
    varying = {name: kind(network()) for name, kind in kinds.items()}
    alone: dict[str, Any] = {"per_sample": True}
    return {
        **{f"{name}, dopri5 at 1e-4": (weights, ADAPTIVE, None) for name, weights in varying.items()},
        "cubic spline, 2 pieces, 20 steps of rk4": (varying["cubic spline, 2 pieces"], GIVEN, None),
        "per sample, cubic spline, 2 pieces, dopri5 at 1e-4": (
            varying["cubic spline, 2 pieces"], ADAPTIVE | alone, None,
        ),
        "per sample, 4 untied layers, dopri5 at 1e-4": (untied, ADAPTIVE | alone, None),
        "per sample, three stops and a jump, dopri5 at 1e-4": (
            tied, ADAPTIVE | alone | {"stops": (0.1, 0.3, 0.7), "jumps": (0.5,)}, None,
        ),
        "per sample, 20 steps of rk4, 51 outputs inside": (tied, GIVEN | alone, TIMES),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, FEATURES)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| work | forward, eager | compiled | gradient, eager | compiled |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (weights, scheme, ts) in cases().items():
        blocks = [odenet.ODEBlock(weights, compile=compile, **scheme) for compile in (False, True)]
        numbers = [
            n for gradient in (False, True) for n in alternated([calling(block, x, ts, gradient) for block in blocks])
        ]
        print(f"| {name} | " + " | ".join(f"{1e3 * n:.3g}" for n in numbers) + " |", flush=True)


def calling(block: odenet.ODEBlock, x: Tensor, ts: Tensor | None, gradient: bool) -> Callable[[], Any]:
    """A call of a block."""

    def answer(x: Tensor) -> Tensor:
        return block(x) if ts is None else block.trajectory(x, ts)

    def forward() -> Tensor:
        with torch.no_grad():
            return answer(x)

    def back() -> Any:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(answer(leaf).square().sum(), [leaf, *block.parameters()])

    return back if gradient else forward


def alternated(calls: list[Callable[[], Any]]) -> list[float]:
    """Median seconds of each."""
    found: list[list[float]] = [[] for _ in calls]
    for repeat in range(REPEATS + 2):
        for call, seconds in zip(calls, found, strict=True):
            begin = time.perf_counter()
            call()
            if repeat >= 2:
                seconds.append(time.perf_counter() - begin)
    return [statistics.median(seconds) for seconds in found]


if __name__ == "__main__":
    main()

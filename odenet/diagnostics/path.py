"""A block's way through depth: its states, the values of F at them, and the same walk with finer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from odenet.blocks import Block
from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.solvers.control import MAX_STEPS
from odenet.solvers.registry import backends
from odenet.solvers.scheme import ADAPTIVE_ONLY, Scheme

Slope = Callable[[Tensor, Tensor], Tensor]
PLAIN: dict[str, Any] = {"gradient": "autograd", "gradient_options": {}, "max_nfe": None}
FREE = (*ADAPTIVE_ONLY, "steps", "step_size", "per_sample", "per_sample_args")  # what picks the steps
RESOLUTION = 1e-9


@dataclass(frozen=True)
class Path:
    """Where a block goes.

    Attributes:
        ts: ends of its steps, t0 first, n + 1 of them.
        states: (n + 1, batch, ...) states there.
        slopes: (n, batch, ...) values of F at the starts of the steps.
    """

    ts: list[float]
    states: Tensor
    slopes: Tensor

    @property
    def h(self) -> list[float]:
        """Step sizes, with their sign."""
        return [b - a for a, b in pairwise(self.ts)]


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no graph inside, every module's own mode afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in modes:
            m.training = training


def follow(block: Block, x: Tensor, observed: int = 1) -> Path:
    """The path of a block from x, in evaluation mode.

    Args:
        block: the block.
        x: (batch, ...) state at t0.
        observed: between the ends of the steps of a method of higher order, whose steps may be long, look at its dense
            output so often that there are at least so many points in all. Layers, steps of order 1, are taken as they
            are.
    """
    with evaluated(block):
        ts = block.depths(x)
        if order_of(block) != 1 and len(ts) > 1:
            ts = split(ts, math.ceil(observed / (len(ts) - 1)))
        states = block.trajectory(x, ts)
        slopes = [slope_on(block, a, b)(as_time(a, x), s) for (a, b), s in zip(pairwise(ts), states, strict=False)]
    return Path(ts, states, torch.stack(slopes) if slopes else states[:0])


def order_of(block: Block) -> int | None:
    """Order of the block's method, None if it is not known."""
    return backends[block.scheme.backend].methods()[block.scheme.solver].order


def as_time(t: float, x: Tensor) -> Tensor:
    """A host time as F is shown it."""
    return torch.full((), t, dtype=torch.float32 if x.dtype.itemsize < 4 else x.dtype.to_real(), device=x.device)


def slope_on(block: Block, a: float, b: float) -> Slope:
    """F on the piece of depth that the step from a to b lies on."""
    middle = ((a + b) / 2 - block.t0) / (block.t1 - block.t0)
    index = sum(knot < middle for knot in block.weights.knots)
    return block.weights.piece(index, block.t0, block.t1)


def refined(block: Block, x: Tensor, k: int, solver: str | None = None) -> Block:
    """The same weights walked with every step of `block` divided by k; of an adaptive block, every accepted step.

    Args:
        block: the block.
        x: (batch, ...) state at t0, from which an adaptive block finds its steps.
        k: parts of a step.
        solver: another native method; None for the block's own.
    """
    method = {} if solver is None else {"solver": solver, "backend": "native", "options": {}}
    steps = block.scheme.steps
    if steps is None:
        scheme = on_grid(block.scheme, split(block.depths(x), k), **method)
    else:
        steps *= k
        scheme = block.scheme.but(steps=steps, max_steps=max(steps, block.scheme.max_steps), **PLAIN, **method)
    return Block(block.weights, scheme, block.t0, block.t1)


def on_grid(scheme: Scheme, grid: Sequence[float], **method: Any) -> Scheme:
    """The method of a scheme on given steps, whatever picked its steps before."""
    free = {f.name: f.default for f in fields(Scheme) if f.name in FREE}
    free |= {"grid": tuple(grid), "max_steps": max(len(grid), MAX_STEPS)}
    return scheme.but(**free, **PLAIN, **method)


class Backwards(DepthWeights):
    """The same weights for a walk from t1 to t0: the last piece is the first.

    Args:
        weights: the weights from t0 to t1.
    """

    def __init__(self, weights: DepthWeights):
        super().__init__()
        self.weights = weights
        self.knots = tuple(1 - knot for knot in reversed(weights.knots))

    def piece(self, index: int, *interval: float) -> Slope:
        return self.weights.piece(self.pieces - 1 - index, *interval[::-1])


class Part(DepthWeights):
    """The weights on a part of depth, from a to b, for a walk of that part.

    Args:
        weights: the weights over all of depth.
        depth: (t0, t1).
        part: (a, b).
    """

    def __init__(self, weights: DepthWeights, depth: tuple[float, float], part: tuple[float, float]):
        super().__init__()
        self.weights, self.depth = weights, depth
        start, end = ((t - depth[0]) / (depth[1] - depth[0]) for t in part)
        self.first = sum(knot <= start + RESOLUTION for knot in weights.knots)
        inside = weights.knots[self.first : sum(knot < end - RESOLUTION for knot in weights.knots)]
        self.knots = tuple((knot - start) / (end - start) for knot in inside)

    def piece(self, index: int, *interval: float) -> Slope:
        return self.weights.piece(self.first + index, *(self.depth if interval else ()))


def check_labels(y: Tensor | None) -> None:
    """Raise `InputError` unless `y` holds labels of classes, or is None."""
    if y is not None and (y.is_floating_point() or y.dim() != 1):
        raise InputError(
            f"this diagnostic is about classes and takes labels of shape (batch,), got targets of dtype {y.dtype} and "
            f"shape {tuple(y.shape)}; of a regression, diagnose the blocks"
        )


def split(ts: Sequence[float], k: int) -> list[float]:
    """Every interval of `ts` divided into k equal ones."""
    fine = [a + (b - a) * (i / k) for a, b in pairwise(ts) for i in range(k)]
    return [*fine, ts[-1]]


def places(n: int, most: int) -> list[int]:
    """Indices 0 ... n - 1, or `most` of them spread evenly, with both ends."""
    count = min(n, most)
    return sorted({round(i * (n - 1) / max(1, count - 1)) for i in range(count)})


def norms(x: Tensor, batch_axis: int = 0) -> Tensor:
    """Euclidean norm of each sample; the axes up to the batch's are kept."""
    return x.flatten(batch_axis + 1).norm(dim=-1) if x.dim() > batch_axis + 1 else x.abs()


def relative(x: Tensor, y: Tensor) -> float:
    """Σ ‖x - y‖ / Σ ‖y‖ over the samples."""
    return float(norms(x - y).sum() / norms(y).sum().clamp(min=torch.finfo(y.dtype).tiny))

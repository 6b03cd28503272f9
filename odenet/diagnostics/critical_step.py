"""From how many steps on does a network survive a better solver?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odenet.blocks import Block, ODEBlock, blocks_of
from odenet.diagnostics.path import check_labels, evaluated
from odenet.diagnostics.result import Curves, Line, Result, diagnostic
from odenet.errors import InputError, OdenetError
from odenet.models.swap import swap_blocks

MARGIN = 0.01


@dataclass(frozen=True)
class CriticalStep(Result):
    """Attributes:
    solver: the training solver's method (Euler if it is adaptive).
    better: the better solver.
    steps: numbers of steps that were tried, for each block, increasing.
    accuracy: with `solver`, or None where it failed; without labels, agreement with the network as it was trained.
    better_accuracy: with `better` and as many steps, likewise.
    critical: the smallest of `steps` from which on the two stay within 1 point, or None if they do not at the largest.
    trained: steps that the network was trained with, or None if they are adaptive.
    """

    solver: str
    better: str
    steps: list[int]
    accuracy: list[float | None]
    better_accuracy: list[float | None]
    critical: int | None
    trained: int | None


@diagnostic(
    "critical_step",
    title="Critical step size",
    formula="N* = min { N : |acc_Φ(n) - acc_better(n)| ≤ 1 point for all n ≥ N }",
    reference="Ott et al. 2021, ResNet After All: Neural ODEs and Their Numerical Solution",
    of="model",
)
def critical_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    steps: Sequence[int] | None = None,
    better: str = "rk4",
    margin: float = MARGIN,
) -> CriticalStep:
    """The smallest number of steps from which accuracy survives a better solver with as many steps.

    Args:
        model: a classifier with blocks in it.
        x: (batch, ...) samples.
        y: (batch,) labels; None to compare with the classes that the network gives as it was trained.
        steps: numbers of steps, multiples of the blocks' layers; default: the layers (or 1) times 1, 2, 4, ... 32.
        better: a solver of higher order.
        margin: difference of accuracy that counts as surviving.

    Returns:
        It passes if the network was trained with at least as many steps as the critical number (if it is adaptive, if
        there is such a number).

    Raises:
        InputError: the model has no blocks, or y are no labels.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise InputError(f"{type(model).__name__} has no blocks whose steps could be changed")
    check_labels(y)
    adaptive = any(block.scheme.steps is None for block in blocks)
    solver = "euler" if adaptive else blocks[0].scheme.solver
    trained = None if adaptive else max(block.scheme.steps or 0 for block in blocks)
    pieces = [block.weights.pieces for block in blocks]
    most = max(pieces)
    tried = sorted(steps) if steps is not None else [most * 2**k for k in range(6)]
    with evaluated(model):
        labels = model(x).argmax(1) if y is None else y
        accuracy = [_accuracy(model, x, labels, solver, n, most) for n in tried]
        higher = [_accuracy(model, x, labels, better, n, most) for n in tried]
    critical = None
    for n, a, b in reversed(list(zip(tried, accuracy, higher, strict=True))):
        if a is None or b is None or abs(a - b) > margin + 1e-9:
            break
        critical = n
    result = CriticalStep(solver, better, tried, accuracy, higher, critical, trained)
    what = "accuracy" if y is not None else "agreement with the network as it was trained"
    if critical is None:
        text = f"{what} does not survive {better} even at {tried[-1]} steps"
    else:
        text = f"{what} survives {better} from {critical} steps on"
        text += "" if trained is None else f"; it was trained with {trained}"
    lines = [_line(solver, tried, accuracy), _line(better, tried, higher)]
    verdict = critical is not None and (trained is None or trained >= critical)
    result.judged(verdict, text, Curves("steps", what, lines, logx=True))
    return result


def _accuracy(model: nn.Module, x: Tensor, labels: Tensor, solver: str, n: int, most: int) -> float | None:
    """With n steps in the block that has `most` layers, and in proportion in the others."""

    def replace(block: Block) -> nn.Module:
        steps = max(1, round(n * block.weights.pieces / most))
        return ODEBlock(block.weights, solver, steps=steps, t0=block.t0, t1=block.t1, gradient="autograd")

    try:
        predicted = swap_blocks(model, replace)(x).argmax(1)
    except OdenetError:
        return None
    return float((predicted == labels).to(torch.float64).mean())


def _line(label: str, steps: list[int], values: list[float | None]) -> Line:
    known = [(float(n), v) for n, v in zip(steps, values, strict=True) if v is not None]
    return Line(label, [n for n, _ in known], [v for _, v in known])

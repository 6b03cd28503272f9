"""Are the weights a smooth function of depth, or a stack of unrelated layers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet.blocks import Block
from odenet.depth import DepthWeights, PiecewiseConstant, piecewise_constant
from odenet.diagnostics.result import Curves, Line, Result, diagnostic
from odenet.errors import OdenetError

SHUFFLES, RATIO, CHANCE = 200, 0.75, 0.05


@dataclass(frozen=True)
class WeightSmoothness(Result):
    """Attributes:
    layers: N.
    depths: fractions of depth at which neighbouring layers meet.
    gaps: N ‖θ_{n+1} - θ_n‖ / ‖θ‖, ‖θ‖ the root mean square over the layers.
    mean: of the gaps.
    shuffled: mean of the same over random orders of the layers.
    ratio: mean / shuffled: 1 for unrelated layers, O(1/N) for a smooth function of depth.
    chance: share of the random orders that are as smooth.
    """

    layers: int
    depths: list[float]
    gaps: list[float]
    mean: float
    shuffled: float
    ratio: float
    chance: float


@diagnostic(
    "weight_smoothness",
    title="Smoothness of the weights in depth",
    formula="N ‖θ_{n+1} - θ_n‖ / ‖θ‖, against the same layers in random order",
    reference="Sander et al. 2022, Do Residual Neural Networks discretize Neural ODEs?; Cohen et al. 2021, Scaling "
    "Properties of Deep Residual Networks",
)
def weight_smoothness(block: Block, x: Tensor | None = None, layers: int = 16, seed: int = 0) -> WeightSmoothness:
    """How far apart the weights of neighbouring layers are, compared with those of layers in random order.

    Args:
        block: the block; of weights that are no layers (a basis of depth) the best `layers` layers are taken.
        x: not used.
        layers: number of layers taken of a basis.
        seed: of the random orders.

    Returns:
        It passes if the gaps are at most 0.75 of those of random orders, and at most 5 % of these are as smooth.
        Weights that do not change with depth pass; fewer than four layers are not judged.
    """
    if block.weights.pieces == 1 and not _varies(block.weights):
        result = WeightSmoothness(1, [], [], 0.0, 0.0, 0.0, 0.0)
        result.judged(True, "the weights are the same at all depths")
        return result
    theta = _stacked(_layers(block.weights, layers))
    n = len(theta)
    distances = n * torch.cdist(theta, theta) / theta.norm(dim=1).square().mean().sqrt().clamp(min=1e-30)
    gaps = distances.diagonal(1)
    mean = float(gaps.mean()) if n > 1 else 0.0
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(SHUFFLES)])
    means = distances[orders[:, :-1], orders[:, 1:]].mean(1) if n > 1 else distances.new_zeros(SHUFFLES)
    shuffled = float(means.mean())
    ratio, chance = (mean / shuffled if shuffled > 0 else 0.0), float((means <= mean * (1 + 1e-9)).double().mean())
    depths = [(i + 1) / n for i in range(n - 1)]
    result = WeightSmoothness(n, depths, gaps.tolist(), mean, shuffled, ratio, chance)
    text = f"neighbouring layers differ {ratio:.2f} times as much as layers in random order"
    lines = [
        Line("neighbouring layers", depths, gaps.tolist(), "points"),
        Line("random order", [], [shuffled], "level"),
    ]
    verdict = None if n < 4 else ratio <= RATIO and chance <= CHANCE
    if n < 4:
        text += f" ({n} layers are too few to judge)"
    result.judged(verdict, text, Curves("depth, as a fraction", "N ‖θₙ₊₁ − θₙ‖ / ‖θ‖", lines))
    return result


def _varies(weights: DepthWeights) -> bool:
    """Whether weights on a single piece are a basis of depth and not one set of tensors."""
    try:
        basis: Any = weights.basis
        return basis.size > 1
    except (OdenetError, AttributeError):
        return False


def _layers(weights: DepthWeights, n: int) -> list[nn.Module]:
    if isinstance(weights, PiecewiseConstant):
        return list(weights.layers)
    project: Any = weights.project
    return list(project(piecewise_constant(n)).layers)


def _stacked(layers: Sequence[nn.Module]) -> Tensor:
    """(N, parameters of a layer), float64, without a graph."""
    rows = [torch.cat([p.detach().flatten().double().cpu() for p in layer.parameters()]) for layer in layers]
    return torch.stack(rows)

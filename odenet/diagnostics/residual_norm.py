"""How large is a layer's contribution, and is it one N-th of the way?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odenet.blocks import Block
from odenet.diagnostics.path import follow, norms, order_of
from odenet.diagnostics.result import Curves, Line, Result, diagnostic, percent

EVEN, LARGEST = 3.0, 0.5


@dataclass(frozen=True)
class ResidualNorm(Result):
    """Attributes:
    depths: starts of the steps.
    norms: ‖F(t_n, x_n)‖, mean over the samples.
    increments: ‖h F(t_n, x_n)‖ / ‖x_n‖, norms summed over the samples.
    unevenness: N max_n ‖h F_n‖ / Σ_n ‖h F_n‖: 1 if all steps are as long, N if one step is the whole way.
    length: Σ_n ‖h F_n‖ / ‖x(t0)‖.
    """

    depths: list[float]
    norms: list[float]
    increments: list[float]
    unevenness: float
    length: float


@diagnostic(
    "residual_norm",
    title="Size of the residuals",
    formula="‖h F(t_n, x_n)‖ / ‖x_n‖ = O(1/N),  N max_n ‖h F_n‖ / Σ_n ‖h F_n‖",
    reference="Sander et al. 2022, Do Residual Neural Networks discretize Neural ODEs?; Marion et al. 2022, Scaling "
    "ResNets in the Large-depth Regime",
)
def residual_norm(block: Block, x: Tensor) -> ResidualNorm:
    """How far each step moves the state, in units of the state, and how evenly the way is shared among the steps.

    Args:
        block: the block.
        x: (batch, ...) states at t0.

    Returns:
        It passes if no step moves the state by more than half of its norm, and none takes more than three times its
        share of the way. Only steps of order 1, which are layers, are judged: those of other methods may be long.
    """
    path = follow(block, x)
    h = path.states.new_tensor(path.h).abs().unsqueeze(1)
    F = norms(path.slopes, 1)
    size = norms(path.states[:-1], 1)
    increments = (h * F).sum(1) / size.sum(1).clamp(min=1e-30)
    way = (h * F).mean(1)
    total = float(way.sum())
    unevenness = len(way) * float(way.max()) / total if total > 0 else 1.0
    length = total / max(float(norms(path.states[0]).mean()), 1e-30)
    result = ResidualNorm(path.ts[:-1], F.mean(1).tolist(), increments.tolist(), unevenness, length)
    largest = float(increments.max())
    text = (
        f"a step moves the state by up to {percent(largest)} of its norm; the longest step is {unevenness:.2g} times "
    )
    text += f"the mean one of {len(way)}"
    curves = Curves(
        "depth t", "‖h F‖ / ‖x‖", [Line("increment", path.ts[:-1], increments.tolist(), "points")], logy=True
    )
    small = largest <= LARGEST and unevenness <= EVEN
    result.judged(small if order_of(block) == 1 else None, text, curves)
    return result

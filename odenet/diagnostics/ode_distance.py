"""How far from its ODE is the network, along depth, and how far may it be?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from odenet.blocks import Block
from odenet.diagnostics.jacobian import jvp, lipschitz
from odenet.diagnostics.path import Path, Slope, as_time, evaluated, follow, norms, places, refined, slope_on
from odenet.diagnostics.result import Curves, Line, Result, diagnostic, percent

DISTANCE, FINER, SAMPLES, PLACES, POWER_STEPS = 0.1, 4, 8, 8, 15


@dataclass(frozen=True)
class OdeDistance(Result):
    """Attributes:
    ts: ends of the steps.
    distance: ‖x_n - x(t_n)‖, mean over the samples.
    displacement: ‖x(t_n) - x(t0)‖, likewise.
    bound: h M (exp(L t) - 1) / (2 L) of each step's end, mean over the samples; for Euler's method, else empty.
    L: largest ‖∂F/∂x‖₂ along both paths, of each sample.
    M: largest ‖x''‖ along the ODE's path, of each sample.
    relative: distance over displacement, both means over the samples, at t1.
    """

    ts: list[float]
    distance: list[float]
    displacement: list[float]
    bound: list[float]
    L: list[float]
    M: list[float]
    relative: float


@diagnostic(
    "ode_distance",
    title="Distance to the ODE along depth",
    formula="‖x_n - x(t_n)‖ ≤ h M (e^{L (t_n - t0)} - 1) / (2 L),  M = max ‖∂_t F + ∂_x F F‖,  L = max ‖∂_x F‖",
    reference="Sander et al. 2022, Do Residual Neural Networks discretize Neural ODEs?, Proposition 1",
)
def ode_distance(block: Block, x: Tensor, finer: int = FINER, samples: int = SAMPLES) -> OdeDistance:
    """The distance between the block's states and those of the ODE with the same weights, and its bound.

    The ODE's states are those of RK4 with every step divided by `finer`. The constants of the bound are the largest
    values that were met at places along the two paths, L by power iteration.

    Args:
        block: the block.
        x: (batch, ...) states at t0.
        finer: parts of a step in the reference.
        samples: samples of the batch for which the constants are measured, and over which all means are taken.

    Returns:
        It passes if at t1 the distance is at most a tenth of the way that the ODE goes.
    """
    x = x[:samples]
    path = follow(block, x)
    fine = follow(refined(block, x, finer, "rk4"), x)
    states = fine.states[::finer]
    distance = norms(path.states - states, 1)
    displacement = norms(states - x, 1)
    L, M = _constants(block, path, fine, finer)
    bound = []
    if block.scheme.solver == "euler":
        for t in path.ts:
            reach = abs(t - block.t0)
            growth = torch.where(L > 1e-12, torch.expm1(L * reach) / L.clamp(min=1e-12), reach)
            bound.append(float((max(map(abs, path.h)) * M * growth / 2).mean()))
    means = distance.mean(1).tolist(), displacement.mean(1).tolist()
    relative = means[0][-1] / max(means[1][-1], 1e-30)
    result = OdeDistance(path.ts, *means, bound, L.tolist(), M.tolist(), relative)
    text = f"at the end of depth the states are {percent(relative)} of the ODE’s way apart from it"
    if bound:
        text += f"; the bound is {bound[-1] / max(means[1][-1], 1e-30):.2g} times the way"
    lines = [Line("distance to the ODE", path.ts[1:], means[0][1:]), Line("way of the ODE", path.ts[1:], means[1][1:])]
    if bound:
        lines.append(Line("bound", path.ts[1:], bound[1:], "dashed"))
    result.judged(relative <= DISTANCE, text, Curves("depth t", "‖·‖, mean over samples", lines, logy=True))
    return result


def _constants(block: Block, path: Path, fine: Path, finer: int) -> tuple[Tensor, Tensor]:
    """(L, M) of each sample, float64: L along both paths, M along the ODE's."""
    L = M = torch.zeros(fine.states.shape[1], dtype=torch.float64)
    with evaluated(block):
        for n in places(len(path.slopes), PLACES):
            a, b = path.ts[n], path.ts[n + 1]
            F, t = slope_on(block, a, b), as_time(a, fine.states)
            for x in (path.states[n], fine.states[n * finer]):
                L = torch.maximum(L, lipschitz(partial(F, t), x, POWER_STEPS).double().cpu())
        for n in places(len(path.slopes), 4 * PLACES):
            a, b = path.ts[n], path.ts[n + 1]
            F = slope_on(block, a, b)
            for t, i, inwards in ((a, n, b - a), (b, n + 1, a - b)):
                x = fine.states[i * finer]
                M = torch.maximum(M, norms(_second_derivative(F, as_time(t, x), x, inwards)).double().cpu())
    return L, M


def _second_derivative(F: Slope, t: Tensor, x: Tensor, inwards: float) -> Tensor:
    """x'' = ∂_t F + ∂_x F F; the derivative by t is a difference over a thousandth of the step, into the step."""
    k = F(t, x)
    pushed = jvp(partial(F, t), x, k)
    return pushed + (F(t + 1e-3 * inwards, x) - k) / (1e-3 * inwards)

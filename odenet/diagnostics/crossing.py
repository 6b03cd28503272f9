"""Do paths cross, which those of an ODE cannot?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.blocks import Block
from odenet.diagnostics.path import follow
from odenet.diagnostics.result import Curves, Line, Result, diagnostic, percent

CLOSE, PAIRS, SAMPLES, OBSERVED = 0.1, 0.01, 64, 32


@dataclass(frozen=True)
class Crossing(Result):
    """Attributes:
    ts: ends of the steps.
    separation: ‖x_i - x_j‖ relative to the start, median over the pairs, at each of them.
    closest: for each step the smallest ratio over the pairs of how near the two straight paths come to each other
        within the step, at equal times, to the smaller of their distances at its ends: 0 if they cross.
    crossing: share of the pairs whose paths come nearer than a tenth within one step.
    inversions: in one dimension, share of the pairs whose order at t1 is not that at t0; else None.
    """

    ts: list[float]
    separation: list[float]
    closest: list[float]
    crossing: float
    inversions: float | None


@diagnostic(
    "crossing",
    title="Crossing of paths",
    formula="min_{0≤s≤1} ‖(1-s) d_n + s d_{n+1}‖ / min(‖d_n‖, ‖d_{n+1}‖),  d = x_i - x_j",
    reference="Dupont et al. 2019, Augmented Neural ODEs",
)
def crossing(block: Block, x: Tensor, samples: int = SAMPLES) -> Crossing:
    """Whether the paths of two samples cross, or the order of points on a line is changed.

    Two solutions of an ODE are never at the same place at the same time. The straight pieces that a coarse network
    walks may well be: the difference of two states turns round within a step.

    Args:
        block: the block.
        x: (batch, ...) states at t0.
        samples: samples of the batch whose pairs are compared, at most.

    Returns:
        It passes if at most 1 % of the pairs come nearer than a tenth of their distance within a step.
    """
    path = follow(block, x[:samples], OBSERVED)
    states = path.states.flatten(2).double()
    i, j = torch.triu_indices(states.shape[1], states.shape[1], 1, device=states.device)
    d = states[:, i] - states[:, j]
    apart = d.norm(dim=-1)
    keep = apart[0] > 1e-9 * states[0].norm(dim=-1).max().clamp(min=1e-30)
    d, apart = d[:, keep], apart[:, keep]
    if not d.shape[1]:
        result = Crossing(path.ts, [], [], 0.0, None)
        result.judged(None, "there is no pair of different samples")
        return result
    move = d[1:] - d[:-1]
    s = (-(d[:-1] * move).sum(-1) / move.square().sum(-1).clamp(min=1e-300)).clamp(0, 1)
    nearest = (d[:-1] + s.unsqueeze(-1) * move).norm(dim=-1)
    ratio = nearest / torch.minimum(apart[:-1], apart[1:]).clamp(min=1e-300)
    crossed = float((ratio.min(0).values < CLOSE).double().mean())
    inversions = None
    if states.shape[2] == 1:
        inversions = float((d[0].sign() * d[-1].sign() < 0).double().mean())
    separation = (apart / apart[0]).median(1).values.tolist()
    result = Crossing(path.ts, separation, ratio.min(1).values.tolist(), crossed, inversions)
    text = f"the paths of {percent(crossed)} of the pairs come within a tenth of their distance inside a step"
    if inversions is not None:
        text += f"; on the line {percent(inversions)} of the pairs change their order"
    lines = [
        Line("nearest pair within a step", path.ts[1:], result.closest, "points"),
        Line("threshold, 0.1", [], [CLOSE], "level"),
    ]
    result.judged(crossed <= PAIRS, text, Curves("depth t", "nearest / distance at the ends", lines))
    return result

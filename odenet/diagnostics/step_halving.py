"""Does the answer stay the same when every step is halved, and does the difference fall as the method's order says?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from odenet.blocks import Block
from odenet.diagnostics.path import evaluated, order_of, refined, relative
from odenet.diagnostics.result import Curves, Line, Result, diagnostic, percent

DEFECT, SLACK = 0.05, 0.5


@dataclass(frozen=True)
class StepHalving(Result):
    """Attributes:
    steps: steps of the block, and of each finer walk.
    defects: ‖x_h - x_{h/2}‖ / ‖x_{h/2}‖ of each walk and the next finer one, norms summed over the samples.
    orders: log₂ of each defect over the next.
    order: of the solver, or None.
    """

    steps: list[int]
    defects: list[float]
    orders: list[float]
    order: int | None


@diagnostic(
    "step_halving",
    title="Step halving",
    formula="δ = ‖x_h(t1) - x_{h/2}(t1)‖ / ‖x_{h/2}(t1)‖,  p = log₂ (δ_h / δ_{h/2})",
    reference="Richardson 1911; Ott et al. 2021, ResNet After All",
)
def step_halving(block: Block, x: Tensor, halvings: int = 3) -> StepHalving:
    """How much the output changes when every step is halved, again and again, and the order that this shows.

    Args:
        block: the block; of an adaptive one, its accepted steps are halved.
        x: (batch, ...) states at t0.
        halvings: how many times.

    Returns:
        It passes if the first defect is at most 5 % and, unless it is at rounding already, an observed order lies
        within 0.5 of the solver's or above.
    """
    with evaluated(block):
        walks = [refined(block, x, 2**k) for k in range(halvings + 1)]
        ends = [walk(x) for walk in walks]
    steps = [walk.stats.accepted for walk in walks]
    defects = [relative(a, b) for a, b in pairwise(ends)]
    rounding = 64 * torch.finfo(x.dtype).eps
    orders = [math.log2(a / b) if min(a, b) > rounding else math.nan for a, b in pairwise(defects)]
    order = order_of(block)
    result = StepHalving(steps, defects, orders, order)
    known = [p for p in orders if not math.isnan(p)]
    converges = not known or order is None or known[-1] > order - SLACK
    text = f"halving its {steps[0]} steps changes the output by {percent(defects[0])}"
    if known and order is not None:
        text += f"; the observed order is {known[-1]:.2f}, that of {block.scheme.solver} is {order}"
    elif not known:
        text += ", and halving them again by no more than rounding"
    line = Line("defect", [float(n) for n in steps[:-1]], defects)
    level = Line(f"threshold, {percent(DEFECT)}", [], [DEFECT], "level")
    curves = Curves("steps", "relative change when halved", [line, level], logx=True, logy=True)
    result.judged(defects[0] <= DEFECT and converges, text, curves)
    return result

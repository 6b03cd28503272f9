"""Does walking back along the same depth lead to where the walk began?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odenet.blocks import Block
from odenet.diagnostics.path import Backwards, evaluated, refined, relative
from odenet.diagnostics.result import Curves, Line, Result, diagnostic, percent
from odenet.errors import SolveError
from odenet.run import run

RETURN = 0.05


@dataclass(frozen=True)
class Reversibility(Result):
    """Attributes:
    steps: steps of the block, and of each finer walk.
    errors: ‖x̂(t0) - x(t0)‖ / ‖x(t0)‖ after walking forwards and back, norms summed over the samples; infinite if the
        way back broke down.
    """

    steps: list[int]
    errors: list[float]


@diagnostic(
    "reversibility",
    title="Forwards and back",
    formula="‖Φ_{t1→t0}(Φ_{t0→t1}(x)) - x‖ / ‖x‖",
    reference="Gholami et al. 2019, ANODE; Behrmann et al. 2021, Understanding and Mitigating Exploding Inverses",
)
def reversibility(block: Block, x: Tensor) -> Reversibility:
    """The error after walking depth forwards and backwards with the same method and steps, and with finer ones.

    An ODE's flow can be undone; a step of a residual network is undone by a step backwards only up to the step's error.

    Args:
        block: the block.
        x: (batch, ...) states at t0.

    Returns:
        It passes if the state at t0 is found again within 5 %.
    """
    steps, errors = [], []
    with evaluated(block):
        for k in (1, 2, 4):
            walk = refined(block, x, k)
            y = walk(x)
            try:
                errors.append(relative(_back(walk, y), x))
            except SolveError:
                errors.append(float("inf"))
            steps.append(walk.stats.accepted)
    result = Reversibility(steps, errors)
    text = f"after {steps[0]} steps forwards and back the state differs by {percent(errors[0])}, after {steps[-1]} by "
    text += percent(errors[-1])
    finite = [(float(n), e) for n, e in zip(steps, errors, strict=True) if e < float("inf")]
    lines = [
        Line("error", [n for n, _ in finite], [e for _, e in finite]),
        Line(f"threshold, {percent(RETURN)}", [], [RETURN], "level"),
    ]
    curves = Curves("steps", "relative error of x(t0)", lines, logx=True, logy=True)
    result.judged(errors[0] <= RETURN, text, curves)
    return result


def _back(block: Block, y: Tensor) -> Tensor:
    """From y at t1 to t0, over the same grid."""
    scheme = block.scheme
    if scheme.grid is not None:
        scheme = scheme.but(grid=scheme.grid[::-1])
    return run(Backwards(block.weights), y, (block.t1, block.t0), scheme).last

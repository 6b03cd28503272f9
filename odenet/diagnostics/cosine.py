"""Do successive layers push in the same direction?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from odenet.blocks import Block
from odenet.diagnostics.path import follow
from odenet.diagnostics.result import Curves, Line, Result, diagnostic

ALIGNED, OBSERVED = 0.7, 16


@dataclass(frozen=True)
class ResidualCosine(Result):
    """Attributes:
    depths: where each pair of neighbouring steps meets.
    cosines: cosine of the two values of F, mean over the samples.
    mean: of the cosines; NaN for a single step.
    """

    depths: list[float]
    cosines: list[float]
    mean: float


@diagnostic(
    "residual_cosine",
    title="Cosine of successive residuals",
    formula="cos(F_n(x_n), F_{n+1}(x_{n+1}))",
    reference="Li and Papyan 2023, Residual Alignment; Jastrzębski et al. 2018, Residual Connections Encourage "
    "Iterative Inference",
)
def residual_cosine(block: Block, x: Tensor) -> ResidualCosine:
    """The cosine between the residuals of neighbouring steps: near 1 on a smooth path that is walked finely.

    Args:
        block: the block.
        x: (batch, ...) states at t0.

    Returns:
        It passes if the mean is at least 0.7, an angle of 45°. A single step is not judged.
    """
    path = follow(block, x, OBSERVED)
    F = path.slopes.flatten(2)
    cosines = cosine_similarity(F[:-1], F[1:], dim=-1).mean(1).tolist() if len(F) > 1 else []
    mean = sum(cosines) / len(cosines) if cosines else float("nan")
    result = ResidualCosine(path.ts[1:-1], cosines, mean)
    if not cosines:
        result.judged(None, "a single step has no successor")
        return result
    text = f"neighbouring residuals have a mean cosine of {mean:.2f}, at least {min(cosines):.2f}"
    curves = Curves(
        "depth t", "cosine", [Line("cosine", path.ts[1:-1], cosines), Line("threshold, 45°", [], [ALIGNED], "level")]
    )
    result.judged(mean >= ALIGNED, text, curves)
    return result

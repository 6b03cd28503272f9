"""How fast do neighbouring states come apart along depth?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.blocks import Block
from odenet.depth import DepthWeights
from odenet.diagnostics.path import Part, Slope, evaluated, on_grid
from odenet.diagnostics.result import Curves, Line, Result, diagnostic
from odenet.run import run
from odenet.solvers.jacobian import load_forward_mode

EXPONENTS = 4


@dataclass(frozen=True)
class Lyapunov(Result):
    """Attributes:
    ts: ends of the intervals after each of which the tangents are made orthonormal again.
    exponents: (batch, k) finite-time exponents over depth, largest first, per unit of t.
    along: (intervals, k) their running values, mean over the samples.
    mean: (k,) mean over the samples.
    """

    ts: list[float]
    exponents: Tensor
    along: Tensor
    mean: list[float]


class Variational(DepthWeights):
    """F and its linearisation: s_0' = F(t, s_0), s_i' = ∂F/∂x(t, s_0) s_i, for a state of 1 + k slices.

    A Runge-Kutta step of it is the step of F and the derivative of that step.

    Args:
        weights: F with its weights over depth.
    """

    def __init__(self, weights: DepthWeights):
        super().__init__()
        load_forward_mode()
        self.weights, self.knots = weights, weights.knots

    def piece(self, index: int, *interval: float) -> Slope:
        F = self.weights.piece(index, *interval)

        def linearised(t: Tensor, s: Tensor) -> Tensor:
            pushed = [torch.func.jvp(lambda x: F(t, x), (s[0],), (v,)) for v in s[1:]]
            return torch.stack([pushed[0][0], *(p[1] for p in pushed)])

        return linearised


@diagnostic(
    "lyapunov",
    title="Finite-time Lyapunov exponents",
    formula="λ_i = 1/T Σ_n log R_ii(n),  Q R = ∂Φ_n Q",
    reference="Benettin et al. 1980; Vogt et al. 2022, On Lyapunov Exponents for RNNs; Storm et al. 2024, Finite-time "
    "Lyapunov exponents of deep neural networks",
)
def lyapunov(
    block: Block, x: Tensor, k: int = EXPONENTS, intervals: int | None = None, skip: int = 0, seed: int = 0
) -> Lyapunov:
    """The k largest finite-time Lyapunov exponents of each sample, by the QR method along depth.

    The linearised flow is walked with the block's own scheme, and the tangents are made orthonormal again after each
    interval, at the ends of the block's steps.

    Args:
        block: the block.
        x: (batch, ...) states at t0.
        k: how many exponents; the dimension of the state at most.
        intervals: how many intervals; default the block's steps.
        skip: intervals at the start that align the tangents and do not count.
        seed: of the first tangents.

    Returns:
        Exponents per unit of t. They are not judged.
    """
    batch, dim = x.shape[0], x[0].numel()
    k = min(k, dim)
    generator = torch.Generator().manual_seed(seed)
    tangents = torch.randn(batch, dim, k, generator=generator, dtype=torch.float64).to(x)
    Q = torch.linalg.qr(tangents)[0]
    logs, ts = [], []
    with evaluated(block):
        ends = block.depths(x)
        stride = 1 if intervals is None else max(1, (len(ends) - 1) // intervals)
        marks = [*ends[:-1:stride], ends[-1]]
        for n, b in enumerate(marks[1:]):
            inside = [*ends[n * stride : min((n + 1) * stride, len(ends) - 1)], b]
            s = torch.cat([x.unsqueeze(0), Q.movedim(2, 0).reshape(k, *x.shape)])
            s = _walk(block, s, inside)
            x = s[0]
            Q, R = torch.linalg.qr(s[1:].reshape(k, batch, dim).movedim(0, 2))
            if n >= skip:
                logs.append(R.diagonal(dim1=1, dim2=2).abs().clamp(min=1e-300).log())
                ts.append(b)
    growth = torch.stack(logs).double().cumsum(0)
    start = marks[min(skip, len(marks) - 1)]
    spans = torch.tensor([abs(t - start) for t in ts], dtype=torch.float64)
    along = growth / spans[:, None, None].to(growth.device)
    exponents = along[-1].sort(dim=1, descending=True).values
    mean = exponents.mean(0)
    result = Lyapunov(ts, exponents, along.mean(1), mean.tolist())
    sign = "come apart" if float(mean[0]) > 0 else "come together"
    text = f"the largest exponent is {float(mean[0]):.3g}: neighbouring states {sign} by a factor of "
    text += f"{float(torch.exp(mean[0] * abs(block.t1 - start))):.3g} over depth"
    lines = [Line(f"λ_{i + 1}", ts, along.mean(1)[:, i].tolist()) for i in range(k)]
    result.judged(None, text, Curves("depth t", "running exponent", lines))
    return result


def _walk(block: Block, s: Tensor, grid: list[float]) -> Tensor:
    """The linearised flow over the steps of a grid."""
    part = Part(block.weights, (block.t0, block.t1), (grid[0], grid[-1]))
    return run(Variational(part), s, (grid[0], grid[-1]), on_grid(block.scheme, grid)).last

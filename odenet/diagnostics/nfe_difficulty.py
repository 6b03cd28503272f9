"""Do harder samples take more evaluations of F?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from odenet.blocks import ODEBlock, blocks_of
from odenet.diagnostics.path import evaluated
from odenet.diagnostics.result import Curves, Line, Result, diagnostic
from odenet.errors import InputError
from odenet.models.swap import swap_blocks

TOLERANCE, SAMPLES = 1e-3, 128


@dataclass(frozen=True)
class NfeDifficulty(Result):
    """Attributes:
    nfe: evaluations of F that each sample takes by itself.
    difficulty: its loss; without labels, minus the margin between its two largest logits.
    correlation: Spearman's rank correlation of the two; NaN if either is constant.
    """

    nfe: list[float]
    difficulty: list[float]
    correlation: float


@diagnostic(
    "nfe_difficulty",
    title="Evaluations per sample and difficulty",
    formula="ρ = Spearman(NFE_i, loss_i), each sample solved with its own steps",
    reference="Chen et al. 2018, Neural Ordinary Differential Equations; Dupont et al. 2019, Augmented Neural ODEs",
    of="model",
)
def nfe_difficulty(
    model: nn.Module, x: Tensor, y: Tensor | None = None, tolerance: float = TOLERANCE, samples: int = SAMPLES
) -> NfeDifficulty:
    """The evaluations of F that each sample takes by itself under DOPRI5, and how they go with its loss.

    Args:
        model: a classifier with blocks in it.
        x: (batch, ...) samples.
        y: (batch,) labels, or None.
        tolerance: rtol and atol.
        samples: samples of the batch, at most.

    Returns:
        The rank correlation; it is not judged.

    Raises:
        InputError: the model has no blocks.
    """
    if not blocks_of(model):
        raise InputError(f"{type(model).__name__} has no blocks that evaluate F")
    x, y = x[:samples], None if y is None else y[:samples]
    twin = swap_blocks(
        model,
        lambda b: ODEBlock(b.weights, rtol=tolerance, atol=tolerance, t0=b.t0, t1=b.t1, gradient="autograd"),
    )
    nfe, logits = [], []
    with evaluated(model):
        for i in range(len(x)):
            logits.append(twin(x[i : i + 1]))
            nfe.append(float(sum(block.stats.nfe for block in blocks_of(twin))))
    scores = torch.cat(logits).double()
    if y is None:
        top = scores.topk(2, dim=1).values
        difficulty = (top[:, 1] - top[:, 0]).tolist()
    else:
        difficulty = cross_entropy(scores, y, reduction="none").tolist()
    rho = spearman(torch.tensor(nfe), torch.tensor(difficulty))
    result = NfeDifficulty(nfe, difficulty, rho)
    text = f"a sample takes {min(nfe):.0f} to {max(nfe):.0f} evaluations; their rank correlation with its "
    text += f"{'loss' if y is not None else 'small margin'} is {rho:.2f}"
    if rho != rho:
        text = f"every sample takes {nfe[0]:.0f} evaluations"
    label = "loss" if y is not None else "minus the margin"
    curves = Curves(label, "evaluations of F", [Line("a sample", difficulty, nfe, "points")], logx=y is not None)
    result.judged(None, text, curves)
    return result


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN if either is constant."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    scale = centred.norm(dim=1).prod()
    return float((centred[0] * centred[1]).sum() / scale) if scale > 0 else float("nan")


def _ranks(values: Tensor) -> Tensor:
    values = values.double()
    below = (values.unsqueeze(0) < values.unsqueeze(1)).sum(1)
    ties = (values.unsqueeze(0) == values.unsqueeze(1)).sum(1)
    return below.double() + (ties.double() - 1) / 2

"""Do harder samples take more evaluations of F?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from odenet.blocks import Block, ODEBlock, blocks_of
from odenet.diagnostics.path import as_time, check_labels, evaluated
from odenet.diagnostics.result import Curves, Line, Result, diagnostic
from odenet.diagnostics.survey import block_inputs
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

    Samples are solved together with `per_sample=True`; where F cannot take one time for each sample, one by one.

    Args:
        model: a classifier with blocks in it.
        x: (batch, ...) samples.
        y: (batch,) labels, or None.
        tolerance: rtol and atol.
        samples: samples of the batch, at most.

    Returns:
        The rank correlation; it is not judged.

    Raises:
        InputError: the model has no blocks, or y are no labels.
    """
    if not blocks_of(model):
        raise InputError(f"{type(model).__name__} has no blocks that evaluate F")
    check_labels(y)
    x, y = x[:samples], None if y is None else y[:samples]
    with evaluated(model):
        together = all(map(_takes_times, blocks_of(model), block_inputs(model, x[:2])))

        def adaptive(b: Block) -> ODEBlock:
            walk = {"rtol": tolerance, "atol": tolerance, "gradient": "autograd", "per_sample": together}
            return ODEBlock(b.weights, t0=b.t0, t1=b.t1, **walk)

        twin = swap_blocks(model, adaptive)
        nfe, logits = [], []
        for part in [x] if together else x.split(1):
            logits.append(twin(part))
            nfe += _evaluations(twin, len(part))
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


def _evaluations(model: nn.Module, batch: int) -> list[float]:
    """Evaluations of F for each sample, summed over the blocks."""
    counts = torch.zeros(batch)
    for block in blocks_of(model):
        samples = block.stats.samples
        counts += block.stats.nfe if samples is None else samples.nfe
    return counts.tolist()


def _takes_times(block: Block, x: Tensor) -> bool:
    """Whether F computes the same for one t as for that t for each sample."""
    F, t = block.weights.piece(0, block.t0, block.t1), as_time(block.t0, x)
    try:
        return torch.allclose(F(t.expand(len(x)), x), F(t, x), rtol=1e-3, atol=1e-6)
    except Exception:  # whatever a function that was not made for it does
        return False


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

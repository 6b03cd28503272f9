"""Running statistics of normalisation layers as functions of depth, and estimated anew for another solver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from odenet.errors import InputError

LEAST_SEEN = 1e-3


class StatisticsOverDepth:
    """The running statistics of weights in a basis of depth, during one solve.

    An evaluation at depth s_i brings the batch's statistics m_i. At the end of the solve the coefficients R are moved
    so that they fit them best, with the layer's momentum μ, and directions that no evaluation has seen stay:

        R ← R + μ Φ⁺ (m - Φ R),   Φ_ik = φ_k(s_i)

    Args:
        F: the module in which the statistics are stacked to (K, channels).
        statistics: the layers by the names of their statistics.
        size: K.
    """

    def __init__(self, F: nn.Module, statistics: dict[str, _NormBase], size: int):
        self.F, self.statistics, self.size = F, statistics, size
        self.norms = list(dict.fromkeys(statistics.values()))
        self.rows: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self.active = False

    @property
    def training(self) -> bool:
        """Whether any layer gathers statistics."""
        return any(norm.training and norm.track_running_stats for norm in self.norms)

    def add(self, first: int, phi: Tensor, tensors: dict[str, Tensor]) -> None:
        """What an evaluation has left in the statistics that it was given (their momentum is 1).

        Args:
            first: index of the first function that is not zero there.
            phi: (count,) values of these functions.
            tensors: what F was called with.
        """
        if self.active:
            gathering = (name for name, norm in self.statistics.items() if norm.training)
            self.rows.append((first, phi.detach(), {name: tensors[name] for name in gathering}))

    def begin(self) -> None:
        self.rows, self.active = [], True
        self.kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 1.0, None

    def prepare(self) -> None:
        pass

    def mark(self) -> None:
        self.marked = len(self.rows)

    def undo(self) -> None:
        del self.rows[self.marked :]

    def pause(self, paused: bool) -> None:
        self.active = not paused and hasattr(self, "kept")
        for norm in self.norms:
            norm.track_running_stats = not paused

    @torch.no_grad()
    def end(self, kept: bool) -> None:
        self.active = False
        momenta: dict[nn.Module, float] = {}
        for norm, momentum, count in self.kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
            if kept and self.rows and norm.training and count is not None:
                count.add_(1)
            momenta[norm] = momentum if momentum is not None else 1 / max(1, int(count if count is not None else 1))
        del self.kept
        if kept and self.rows:
            self._fit(momenta)
        self.rows = []

    def _fit(self, momenta: dict[nn.Module, float]) -> None:
        Phi = torch.zeros(len(self.rows), self.size, dtype=torch.float64)
        for row, (first, phi, _) in zip(Phi, self.rows, strict=True):
            row[first : first + len(phi)] = phi.to("cpu", torch.float64)
        inverse = torch.linalg.pinv(Phi, rtol=LEAST_SEEN)
        buffers = dict(self.F.named_buffers(remove_duplicate=False))
        for name in self.rows[0][2]:
            R = buffers[name]
            seen = torch.stack([found[name] for _, _, found in self.rows])
            by = [part.to(R.device, R.dtype) for part in (inverse, Phi)]
            R.data.add_(by[0] @ (seen - by[1] @ R), alpha=momenta[self.statistics[name]])


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Any]) -> int:
    """Estimate the running statistics of every normalisation layer anew, as plain means over the given batches.

    A solver that is not the one of the training shows F states of other sizes, or at other depths; statistics that were
    gathered in training are then not those of what F sees. Only statistics change; layers other than norms (dropout)
    are in evaluation mode meanwhile.

    Args:
        model: any module, on whose device the batches are.
        batches: inputs of the model; where a batch is a tuple or list, its first entry is the input.

    Returns:
        The number of normalisation layers with running statistics.

    Raises:
        InputError: there are no batches.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    modes = [(module, module.training) for module in model.modules()]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    model.eval()
    seen = 0
    try:
        for norm in norms:
            norm.train()
            norm.momentum = None
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked = torch.zeros_like(norm.num_batches_tracked)
        for batch in batches:
            model(batch[0] if isinstance(batch, list | tuple) else batch)
            seen += 1
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
        for module, training in modes:
            module.training = training
    if norms and not seen:
        raise InputError("statistics can be estimated from at least one batch, got none")
    return len(norms)

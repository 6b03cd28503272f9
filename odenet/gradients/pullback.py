"""Vector-Jacobian products on a recorded grid, with the gradients that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odenet.gradients.inputs import vjp
from odenet.gradients.record import Record


class Evaluation(NamedTuple):
    """k = F(t, x) on a piece of depth, with its graph.

    Attributes:
        piece: the piece.
        x: the leaf at which F was evaluated.
        k: the value.
    """

    piece: int
    x: Tensor
    k: Tensor

    @property
    def value(self) -> Tensor:
        """k without its graph."""
        return self.k.detach()


class Pullback:
    """Pulls cotangents back through F: returns vᵀ ∂F/∂x and adds vᵀ ∂F/∂θ to the gradients.

    Args:
        record: of the forward pass.

    Attributes:
        gradients: θ̄, one for each tensor of `record.inputs`, None where nothing has arrived.
    """

    def __init__(self, record: Record):
        self.record, self.field, self.stats = record, record.problem.field, record.problem.stats
        self.gradients: list[Tensor | None] = [None] * len(record.inputs.tensors)
        self._owned: set[int] = set()

    @torch.no_grad()
    def value(self, piece: int, t: float, x: Tensor) -> Tensor:
        """F(t, x) without a graph."""
        return self.field.piece(piece)(t, x)

    def evaluate(self, piece: int, t: float, x: Tensor) -> Evaluation:
        """F(t, x) with its graph."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return Evaluation(piece, leaf, self.field.piece(piece)(t, leaf))

    def pull(self, evaluation: Evaluation, cotangent: Tensor | None) -> Tensor | None:
        """vᵀ ∂F/∂x; the graph of the evaluation is freed."""
        if cotangent is None or not evaluation.k.requires_grad:
            return None
        self.stats.vjps += 1
        (a,) = self.through(evaluation.piece, [(evaluation.k, cotangent)], [evaluation.x])
        return a

    def through(
        self, piece: int, pairs: Sequence[tuple[Tensor, Tensor | None]], leaves: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Cotangents of `leaves` from those of results that were computed from them on a piece of depth.

        Args:
            piece: the piece.
            pairs: results with their cotangents.
            leaves: what they were computed from, beside the tensors that F uses.
        """
        pairs = [(root, seed) for root, seed in pairs if seed is not None and root.requires_grad]
        if not pairs:
            return [None] * len(leaves)
        inputs = self.record.inputs
        roots = [root for root, _ in pairs]
        inputs.check(piece, roots, *leaves)
        tensors = inputs.piece(piece)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = vjp(roots, [*wanted, *tensors], [seed for _, seed in pairs], keep=inputs.computed)
        self.add(piece, found[len(wanted) :])
        parts = iter(found)
        return [next(parts) if leaf.requires_grad else None for leaf in leaves]

    def through_measure(self, number: int, x: Tensor, x_next: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Cotangents of the states at both ends of a step from that of the sum over the steps."""
        record, before = self.record, self.stats.nfe_backward
        with torch.enable_grad():
            leaves = leaf(x), leaf(x_next)
            value = record.measured(number, *leaves)
        self.stats.vjps += self.stats.nfe_backward - before
        start, end = self.through(record.spans[number].piece, [(value, record.seed)], leaves)
        return start, end

    def add(self, piece: int, found: Sequence[Tensor | None]) -> None:
        """Add to the gradients of the tensors that F uses on a piece."""
        for index, part in zip(self.record.inputs.of[piece], found, strict=True):
            total = self.gradients[index]
            if index in self._owned and total is not None and part is not None:
                total.add_(part)
                continue
            if total is not None and part is not None:
                self._owned.add(index)
            self.gradients[index] = plus(total, part)


def leaf(part: Tensor) -> Tensor:
    """A part of a state as a leaf of a graph to come; one of integers gets no gradient."""
    part = part.detach()
    return part.requires_grad_(part.is_floating_point() or part.is_complex())


def plus(total: Tensor | None, part: Tensor | None, alpha: float = 1.0) -> Tensor | None:
    """total + alpha part, where None is zero."""
    if part is None or alpha == 0:
        return total
    if total is None:
        return part if alpha == 1 else part * alpha
    return torch.add(total, part, alpha=alpha)

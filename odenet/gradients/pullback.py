"""Vector-Jacobian products on a recorded grid, with the gradients that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenet.gradients.inputs import vjp


class Evaluation(NamedTuple):
    """k = F(t, x) on a piece of depth, with its graph.

    Attributes:
        piece: the piece; where samples have their own steps, F on those that these samples are on.
        x: the leaf at which F was evaluated.
        k: the value.
    """

    piece: Any
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

    def __init__(self, record: Any):
        self.record, self.field, self.stats = record, record.problem.field, record.problem.stats
        self.gradients: list[Tensor | None] = [None] * len(record.inputs.tensors)
        self._owned: set[int] = set()

    @torch.no_grad()
    def value(self, piece: Any, t: Any, x: Tensor) -> Tensor:
        """F(t, x) without a graph."""
        return self.field.piece(piece)(t, x)

    def evaluate(self, piece: Any, t: Any, x: Tensor) -> Evaluation:
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
        self, piece: Any, pairs: Sequence[tuple[Tensor, Tensor | None]], leaves: Sequence[Tensor]
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
        inputs, pieces = self.record.inputs, self.pieces(piece)
        roots = [root for root, _ in pairs]
        indices = list(dict.fromkeys(i for number in pieces for i in inputs.of[number]))
        tensors = [inputs.tensors[i] for i in indices]
        inputs.check(pieces[0], roots, *leaves, *tensors)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = vjp(roots, [*wanted, *tensors], [seed for _, seed in pairs], keep=inputs.computed)
        self._add(indices, found[len(wanted) :])
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

    def pieces(self, piece: Any) -> Sequence[int]:
        """The pieces of weights that F uses on a piece of depth."""
        return [piece]

    def _add(self, indices: Sequence[int], found: Sequence[Tensor | None]) -> None:
        """Add to the gradients of tensors that F uses."""
        for index, part in zip(indices, found, strict=True):
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


def plus(total: Tensor | None, part: Tensor | None, alpha: Any = 1.0) -> Tensor | None:
    """total + alpha part, where None is zero; alpha is a number, or a tensor that broadcasts against the part."""
    if part is None:
        return total
    if isinstance(alpha, Tensor):
        return part * alpha if total is None else torch.addcmul(total, part, alpha)
    if alpha == 0:
        return total
    if total is None:
        return part if alpha == 1 else part * alpha
    return torch.add(total, part, alpha=alpha)

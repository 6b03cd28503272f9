"""Tangents through a piece of a solve: Jacobian-vector products of whatever a graph computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odenet.errors import GradientError
from odenet.gradients.inputs import Inputs, vjp
from odenet.solvers.stats import Stats


class Direction(NamedTuple):
    """One number: an element of x0 (index None) or of an input of F, or the imaginary part of it.

    Where every sample has its own steps one of x0 is an element of the state of each sample, for all samples at once:
    none depends on another's.
    """

    index: int | None
    element: int
    unit: complex | float
    each: bool = False

    def vector(self, like: Tensor) -> Tensor:
        """The derivative of its tensor with respect to it."""
        vector = torch.zeros_like(like, requires_grad=False).contiguous()
        unit = torch.tensor(self.unit, dtype=like.dtype)
        if self.each:
            vector.view(len(vector), -1)[:, self.element] = unit
        else:
            vector.view(-1)[self.element] = unit
        return vector


def directions(x0: Tensor, tensors: Sequence[Tensor], limit: int, each: bool = False) -> list[Direction]:
    """The numbers with respect to which a gradient is wanted.

    Args:
        x0: the initial state.
        tensors: what F uses.
        limit: the most numbers that are accepted.
        each: whether x0 is one of samples that do not depend on each other.

    Raises:
        GradientError: there are more than `limit`.
    """
    sources = [(i - 1 if i else None, t) for i, t in enumerate([x0, *tensors]) if t.requires_grad]
    counts = [t.numel() // max(1, len(t)) if each and i is None else t.numel() for i, t in sources]
    total = sum(n * (1 + t.is_complex()) for n, (_, t) in zip(counts, sources, strict=True))
    if total > limit:
        largest = max((t for _, t in sources), key=Tensor.numel)
        raise GradientError(
            f"gradient='forward' pushes a tangent for each of the {total} numbers that require a gradient (the "
            f"largest tensor has shape {tuple(largest.shape)}), above limit={limit}; use "
            "gradient='checkpoint', freeze what needs no gradient, or raise limit in gradient_options"
        )
    return [
        Direction(i, element, unit, each and i is None)
        for n, (i, t) in zip(counts, sources, strict=True)
        for element in range(n)
        for unit in ((1.0, 1j) if t.is_complex() else (1.0,))
    ]


class Pushforward:
    """Results as functions of leaves and of the tensors that F uses, to push tangents through; made with a graph.

    Args:
        inputs: the tensors that F uses.
        pieces: the pieces of weights that they come from.
        leaves: what the results were computed from beside them.
        results: the results.
        stats: counts the products.
        evaluations: of F, that the results took.
    """

    def __init__(
        self,
        inputs: Inputs,
        pieces: Sequence[int],
        leaves: Sequence[Tensor],
        results: Sequence[Tensor],
        stats: Stats,
        evaluations: int,
    ):
        self.leaves, self.results, self.stats, self.evaluations = leaves, results, stats, evaluations
        self.moving = [root for root in results if root.requires_grad]
        self.indices = list(dict.fromkeys(i for piece in pieces for i in inputs.of[piece]))
        self.tensors = [inputs.tensors[i] for i in self.indices]
        inputs.check(pieces[0], self.moving, *leaves, *self.tensors)
        wanted = [*(part for part in leaves if part.requires_grad), *self.tensors]
        self.seeds = [torch.zeros_like(root, requires_grad=True) for root in self.moving]
        pulled = vjp(self.moving, wanted, self.seeds, create_graph=True) if self.moving else ()
        self.pulled = {id(w): g for w, g in zip(wanted, pulled, strict=False) if g is not None and g.requires_grad}

    def push(self, tangents: Sequence[Tensor | None], direction: Direction) -> list[Tensor | None]:
        """Tangents of the results from those of the leaves, for one number."""
        pairs = list(zip(self.leaves, tangents, strict=False))
        if direction.index in self.indices:
            tensor = self.tensors[self.indices.index(direction.index)]
            pairs.append((tensor, direction.vector(tensor.detach())))
        pairs = [(self.pulled[id(x)], u) for x, u in pairs if u is not None and id(x) in self.pulled]
        if not pairs:
            return [None] * len(self.results)
        self.stats.vjps += self.evaluations
        values, vectors = zip(*pairs, strict=True)
        pushed = torch.autograd.grad(values, self.seeds, vectors, retain_graph=True, allow_unused=True)
        found = dict(zip(map(id, self.moving), pushed, strict=True))
        return [found.get(id(root)) for root in self.results]

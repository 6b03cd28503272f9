"""Forward mode: the derivatives of the state with respect to a few numbers, carried along the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenet.errors import GradientError, InputError
from odenet.gradients.inputs import Inputs, vjp
from odenet.gradients.pullback import leaf, plus
from odenet.gradients.record import Record
from odenet.gradients.registry import gradients
from odenet.gradients.replay import Cotangents, Gradients, Replayed
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import check_options
from odenet.solvers.solution import Solution
from odenet.solvers.stepper import Trial

LIMIT = 64


class Forward(Replayed):
    """For each number p among the parameters of F (and in x0, if it requires a gradient) the tangent ẋ = ∂x/∂p is
    pushed forward over the accepted grid, and met by the cotangents of the outputs:

        ẋ_{n+1} = ∂Ψ_n/∂x ẋ_n + ∂Ψ_n/∂p,   ∂L/∂p = Σ_i ⟨a_i, ẋ(t_i)⟩

    Exact for the accepted grid, at the cost of one Jacobian-vector product a number, step and stage, in the memory of
    one step and one state for each number: for long solves with few parameters. The walk with tangents takes place
    when the gradient is asked for, on the recorded grid; nothing is kept in between.

    A product of Jacobian and vector is the derivative of u ↦ uᵀ∂Ψ, which is linear in u: every F that has a
    backward pass, and every tensor that F reaches, has one.

    Option: limit, the most numbers that are accepted, default 64.
    """

    name = "forward"
    sums = False
    memory = "nothing; while the gradient is computed one state for each number, and the activations of one step"
    reference = "Wengert 1964, forward accumulation"

    def check_options(self, options: Mapping[str, Any]) -> None:
        check_options("option of gradient='forward'", options, ("limit",))
        limit = options.get("limit", LIMIT)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise InputError(f"limit must be a positive integer, got {limit!r}")

    def sweep(self, problem: Problem) -> Tangents:
        return Tangents(problem.scheme.gradient_options.get("limit", LIMIT))

    def solve(self, problem: Problem) -> Solution:
        if torch.is_grad_enabled():
            self.sweep(problem).directions(problem.x0, Inputs(problem))
        return super().solve(problem)


class Direction(NamedTuple):
    """One number: an element of x0 (index None) or of an input of F, or the imaginary part of it."""

    index: int | None
    element: int
    unit: complex | float

    def vector(self, like: Tensor) -> Tensor:
        """The derivative of its tensor with respect to it."""
        vector = torch.zeros_like(like, requires_grad=False).contiguous()
        vector.view(-1)[self.element] = torch.tensor(self.unit, dtype=like.dtype)
        return vector


class Tangents:
    """The sweep that pushes tangents forward.

    Args:
        limit: the most numbers that are accepted.
    """

    def __init__(self, limit: int):
        self.limit = limit

    def keep(self, record: Record, start: list[Tensor], trial: Trial) -> None:
        """Nothing: the steps are taken again from x0."""

    def kept(self) -> list[Tensor]:
        """Nothing."""
        return []

    def directions(self, x0: Tensor, inputs: Inputs) -> list[Direction]:
        """The numbers.

        Raises:
            GradientError: there are more than `limit`.
        """
        sources = [(i, t) for i, t in enumerate([x0, *inputs.tensors]) if t.requires_grad]
        count = sum(t.numel() * (1 + t.is_complex()) for _, t in sources)
        if count > self.limit:
            largest = max((t for _, t in sources), key=Tensor.numel)
            raise GradientError(
                f"gradient='forward' pushes a tangent for each of the {count} numbers that require a gradient (the "
                f"largest tensor has shape {tuple(largest.shape)}), above limit={self.limit}; use "
                "gradient='checkpoint', freeze what needs no gradient, or raise limit in gradient_options"
            )
        return [
            Direction(i - 1 if i else None, element, unit)
            for i, t in sources
            for element in range(t.numel())
            for unit in ((1.0, 1j) if t.is_complex() else (1.0,))
        ]

    def back(self, record: Record, x0: Tensor, kept: list[Tensor], cotangents: Cotangents) -> Gradients:
        """Step by step from x0, with the tangents of all numbers."""
        directions = self.directions(x0, record.inputs)
        start = [x0]
        tangents = [[d.vector(x0) if d.index is None else None] for d in directions]
        slopes: list[Tensor | None] = [None] * len(directions)
        for number, due in enumerate(record.due()):
            step = _Step(record, number, start, due)
            seeds = [cotangents[i] for i in due]
            for p, direction in enumerate(directions):
                moved, outputs = step.push(tangents[p], direction)
                tangents[p] = moved
                for a, tangent in zip(seeds, outputs, strict=True):
                    if a is not None and tangent is not None:
                        slopes[p] = plus(slopes[p], (a.conj() * tangent).sum().real)
            start = step.end
            record.problem.stats.steps_backward += 1
        found: list[Tensor | None] = [None] * (1 + len(record.inputs.tensors))
        for direction, slope in zip(directions, slopes, strict=True):
            place = 0 if direction.index is None else direction.index + 1
            like = x0 if place == 0 else record.inputs.tensors[place - 1]
            if slope is not None:
                found[place] = plus(found[place], direction.vector(like.detach()) * slope)
        return found[0], found[1:]


class _Step:
    """One step with its graph, to push tangents through."""

    def __init__(self, record: Record, number: int, start: Sequence[Tensor], due: Sequence[int]):
        self.stats, self.piece = record.problem.stats, record.spans[number].piece
        before = self.stats.nfe_backward
        with torch.enable_grad():
            self.leaves = [leaf(part) for part in start]
            end, outputs = record.redo(number, self.leaves, due)
            self.results = [*end, *outputs]
            self.moving = [root for root in self.results if root.requires_grad]
            record.inputs.check(self.piece, self.moving, *self.leaves)
            self.tensors = record.inputs.piece(self.piece)
            self.indices = record.inputs.of[self.piece]
            wanted = [*(part for part in self.leaves if part.requires_grad), *self.tensors]
            self.seeds = [torch.zeros_like(root, requires_grad=True) for root in self.moving]
            pulled = vjp(self.moving, wanted, self.seeds, create_graph=True) if self.moving else ()
            self.pulled = {id(w): g for w, g in zip(wanted, pulled, strict=False) if g is not None and g.requires_grad}
        self.evaluations = self.stats.nfe_backward - before
        self.end = [part.detach() for part in end]

    def push(
        self, tangents: Sequence[Tensor | None], direction: Direction
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Tangents of the state at the end, and of the outputs, from those at the start."""
        pairs = list(zip(self.leaves, tangents, strict=False))
        if direction.index in self.indices:
            tensor = self.tensors[self.indices.index(direction.index)]
            pairs.append((tensor, direction.vector(tensor.detach())))
        pairs = [(self.pulled[id(x)], u) for x, u in pairs if u is not None and id(x) in self.pulled]
        found: dict[int, Tensor | None] = {}
        if pairs:
            self.stats.vjps += self.evaluations
            values, vectors = zip(*pairs, strict=True)
            pushed = torch.autograd.grad(values, self.seeds, vectors, retain_graph=True, allow_unused=True)
            found.update(zip(map(id, self.moving), pushed, strict=True))
        results = [found.get(id(root)) for root in self.results]
        return results[: len(self.end)], results[len(self.end) :]


gradients.add("forward", Forward())

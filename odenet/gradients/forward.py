"""Forward mode: the derivatives of the state with respect to a few numbers, carried along the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.gradients.inputs import Inputs
from odenet.gradients.per_sample import replay_samples
from odenet.gradients.pullback import leaf, plus
from odenet.gradients.pushforward import Pushforward, directions
from odenet.gradients.record import Record
from odenet.gradients.registry import gradients
from odenet.gradients.replay import Cotangents, Gradients, Replayed
from odenet.gradients.sample_forward import SampleTangents
from odenet.solvers.per_sample import SampleProblem, SampleSolution
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
            directions(problem.x0, Inputs(problem).tensors, self.sweep(problem).limit)
        return super().solve(problem)

    def solve_samples(self, problem: SampleProblem) -> SampleSolution:
        """Solve `problem`, each sample with its own steps, so that its states can be differentiated."""
        limit = problem.scheme.gradient_options.get("limit", LIMIT)
        if torch.is_grad_enabled():
            inputs = Inputs(problem)  # pyright: ignore[reportArgumentType]
            directions(problem.x0, inputs.tensors, limit, each=True)
        return replay_samples(problem, SampleTangents(limit))


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

    def back(self, record: Record, x0: Tensor, kept: list[Tensor], cotangents: Cotangents) -> Gradients:
        """Step by step from x0, with the tangents of all numbers."""
        wanted = directions(x0, record.inputs.tensors, self.limit)
        start = [x0]
        tangents = [[d.vector(x0) if d.index is None else None] for d in wanted]
        slopes: list[Tensor | None] = [None] * len(wanted)
        for number, due in enumerate(record.due()):
            step, end = _step(record, number, start, due)
            seeds = [cotangents[i] for i in due]
            for p, direction in enumerate(wanted):
                moved = step.push(tangents[p], direction)
                tangents[p] = moved[: len(end)]
                for a, tangent in zip(seeds, moved[len(end) :], strict=True):
                    if a is not None and tangent is not None:
                        slopes[p] = plus(slopes[p], (a.conj() * tangent).sum().real)
            start = end
            record.problem.stats.steps_backward += 1
        found: list[Tensor | None] = [None] * (1 + len(record.inputs.tensors))
        for direction, slope in zip(wanted, slopes, strict=True):
            place = 0 if direction.index is None else direction.index + 1
            like = x0 if place == 0 else record.inputs.tensors[place - 1]
            if slope is not None:
                found[place] = plus(found[place], direction.vector(like.detach()) * slope)
        return found[0], found[1:]


def _step(record: Record, number: int, start: Sequence[Tensor], due: Sequence[int]) -> tuple[Pushforward, list[Tensor]]:
    """A step again, to push tangents through; and where it ends."""
    stats, piece = record.problem.stats, record.spans[number].piece
    before = stats.nfe_backward
    with torch.enable_grad():
        leaves = [leaf(part) for part in start]
        end, outputs = record.redo(number, leaves, due)
        push = Pushforward(record.inputs, [piece], leaves, [*end, *outputs], stats, stats.nfe_backward - before)
    return push, [part.detach() for part in end]


gradients.add("forward", Forward())

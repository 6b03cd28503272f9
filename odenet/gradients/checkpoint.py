"""Checkpointed backprop: one step's graph at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.autograd import check_no_options
from odenet.gradients.inputs import Inputs, needs_gradient, vjp
from odenet.gradients.registry import gradients
from odenet.solvers.explicit import ExplicitRungeKutta, Span, Trial
from odenet.solvers.loop import Outputs, integrate, states_at
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution


class Checkpoint:
    """The forward pass keeps the state at each accepted step and no graph; the backward pass rebuilds one step's graph
    at a time, on the grid of the forward pass, and differentiates it.

        a_n = (∂Ψ_n/∂x_n)ᵀ a_{n+1},   θ̄ += (∂Ψ_n/∂θ)ᵀ a_{n+1},   x_{n+1} = Ψ_n(x_n)

    Exact for the accepted grid; costs one more evaluation of F for each of the forward pass's accepted stages.

    Reference:
        Zhuang et al. 2020, Adaptive Checkpoint Adjoint Method for Gradient Estimation in Neural ODE.
    """

    exact = True
    backends: tuple[str, ...] = ("native",)
    memory = "one state a step, and the activations of one step"
    reference = "Zhuang et al. 2020 (ACA)"

    def check(self, scheme: Scheme, options: Mapping[str, Any]) -> None:
        check_no_options("checkpoint", options)

    def solve(self, problem: Problem) -> Solution:
        if not torch.is_grad_enabled():
            return integrate(problem)
        inputs = Inputs(problem)
        problem.field.observer = inputs.observe
        record = _Record(problem, solvers[problem.scheme.solver], inputs)
        with torch.no_grad():
            solution = integrate(problem, record.add)
        problem.field.observer = None
        if not needs_gradient(problem, inputs):
            return solution
        states = _Replay.apply(record, solution.states, problem.x0, *inputs.tensors)
        return Solution(states, solution.times, solution.stats)


@dataclass
class _Record:
    """The accepted grid and the states it started from."""

    problem: Problem
    stepper: ExplicitRungeKutta
    inputs: Inputs
    spans: list[Span] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        self.spans.append(trial.span)
        self.states.append(trial.x)

    def due(self) -> list[list[int]]:
        """For each step, the indices of the outputs that it passes over."""
        outputs, due = Outputs(self.problem), []
        for span in self.spans:
            first = len(outputs.states)
            outputs.states += [self.problem.x0] * len(outputs.due(span))
            due.append(list(range(first, len(outputs.states))))
        return due

    def redo(self, number: int, x: Tensor, due: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Step `number` again from x: the next state, and the outputs it passes over."""
        span = self.spans[number]
        f = self.problem.field.piece(span.piece)
        trial = self.stepper.step(f, span, x)
        return trial.x_next, states_at(self.stepper, f, trial, [self.problem.ts[i] for i in due])


class _Replay(torch.autograd.Function):
    """The states of a solve as differentiable functions of x0 and of the tensors that F uses."""

    @staticmethod
    def forward(ctx: Any, record: _Record, states: list[Tensor], x0: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.record, ctx.tensors = record, tensors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x0, *tensors, *record.states[1:])
        record.states = []
        return tuple(state.clone() if state is x0 else state.view_as(state) for state in states)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        record: _Record = ctx.record
        count = len(ctx.tensors)
        x0, *saved = ctx.saved_tensors
        states = [x0, *saved[count:]]
        if torch.is_grad_enabled():
            return None, None, *_differentiable(record, x0, ctx.tensors, cotangents)
        due = record.due()
        start = next((n[0] for n in due if n), len(cotangents))
        gradients: list[Tensor | None] = [None] * count
        a: Tensor | None = None
        with record.problem.field.recompute():
            for number in reversed(range(len(record.spans))):
                a, parts = _step_back(record, number, states[number], due[number], cotangents, a)
                for index, part in zip(record.inputs.of[record.spans[number].piece], parts, strict=True):
                    gradients[index] = _sum(gradients[index], part)
        for cotangent in cotangents[:start]:
            a = _sum(a, cotangent)
        return None, None, a, *gradients


def _step_back(
    record: _Record,
    number: int,
    x: Tensor,
    due: list[int],
    cotangents: tuple[Tensor | None, ...],
    a: Tensor | None,
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """Cotangents of a step's initial state and of the tensors F used in it, from that of its final state."""
    piece = record.spans[number].piece
    tensors = record.inputs.piece(piece)
    wanted = [i for i in due if cotangents[i] is not None]
    if a is None and not wanted:
        return None, [None] * len(tensors)
    stats = record.problem.stats
    before = stats.nfe_backward
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x_next, outputs = record.redo(number, x, wanted)
    stats.vjps += stats.nfe_backward - before
    roots, seeds = list(outputs), [cotangents[i] for i in wanted]
    if a is not None:
        roots, seeds = [x_next, *roots], [a, *seeds]
    record.inputs.check(piece, roots, x)
    first, *rest = vjp(roots, [x, *tensors], seeds, keep=record.inputs.computed)
    return first, rest


def _differentiable(
    record: _Record, x0: Tensor, tensors: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The same gradients with a graph of their own, for second derivatives: all steps again, on the tape."""
    x = x0
    states = [x] * len(cotangents)
    with record.problem.field.recompute():
        for number, due in enumerate(record.due()):
            before = x
            x, outputs = record.redo(number, before, due)
            record.inputs.check(record.spans[number].piece, [x, *outputs], before)
            for index, output in zip(due, outputs, strict=True):
                states[index] = output
    pairs = [(s, g) for s, g in zip(states, cotangents, strict=True) if g is not None and s.requires_grad]
    inputs = [t for t in (x0, *tensors) if t.requires_grad]
    grads = vjp([state for state, _ in pairs], inputs, [g for _, g in pairs], create_graph=True)
    found = dict(zip(map(id, inputs), grads, strict=True))
    return tuple(found.get(id(t)) for t in (x0, *tensors))


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if total is None or part is None:
        return part if total is None else total
    return total + part


gradients.add("checkpoint", Checkpoint())

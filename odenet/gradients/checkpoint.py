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
from odenet.solvers.loop import Outputs, integrate, states_at
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution
from odenet.solvers.stepper import NOTHING, Memory, Span, Stepper, Trial


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
        record.times = solution.times
        states = _Replay.apply(record, solution.states, problem.x0, *inputs.tensors)
        return Solution(states, solution.times, solution.stats, error=solution.error, hits=solution.hits)


@dataclass
class _Record:
    """The accepted grid, and what its steps started from: the state, and what the method carries beside it."""

    problem: Problem
    stepper: Stepper
    inputs: Inputs
    times: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    starts: list[list[Tensor]] = field(default_factory=list)
    memory_times: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        memory = NOTHING if self.begins(trial.span) else trial.given
        self.spans.append(trial.span)
        self.starts.append([trial.x, *memory.tensors])
        self.memory_times.append(memory.times)

    def begins(self, span: Span, number: int | None = None) -> bool:
        """Whether a step is the first one on its piece of depth (step `number`, or the next to be added)."""
        number = len(self.spans) if number is None else number
        return number == 0 or self.spans[number - 1].piece != span.piece

    def due(self) -> list[list[int]]:
        """For each step, the indices of the outputs that it passes over."""
        outputs, due = Outputs(self.problem, self.times), []
        for span in self.spans:
            first = len(outputs.states)
            outputs.states += [self.problem.x0] * len(outputs.due(span))
            due.append(list(range(first, len(outputs.states))))
        return due

    def redo(self, number: int, start: Sequence[Tensor], due: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Step `number` again from (x, memory): the next such state, and the outputs it passes over."""
        span = self.spans[number]
        f = self.problem.field.piece(span.piece)
        x, *tensors = start
        if self.begins(span, number):
            memory = self.stepper.start(f, span.t, x)
        else:
            memory = Memory(tuple(tensors), self.memory_times[number])
        trial = self.stepper.step(f, span, x, memory)
        outputs = states_at(self.stepper, f, trial, [self.times[i] for i in due])
        last = number + 1 == len(self.spans) or self.begins(self.spans[number + 1], number + 1)
        return [trial.x_next, *(() if last else trial.memory.tensors)], outputs


class _Replay(torch.autograd.Function):
    """The states of a solve as differentiable functions of x0 and of the tensors that F uses."""

    @staticmethod
    def forward(ctx: Any, record: _Record, states: list[Tensor], x0: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.record, ctx.tensors = record, tensors
        ctx.set_materialize_grads(False)
        ctx.lengths = [len(start) for start in record.starts[1:]]
        ctx.save_for_backward(x0, *tensors, *(part for start in record.starts[1:] for part in start))
        record.starts = []
        return tuple(state.clone() if state is x0 else state.view_as(state) for state in states)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        record: _Record = ctx.record
        count = len(ctx.tensors)
        x0, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, *_differentiable(record, x0, ctx.tensors, cotangents)
        parts = iter(saved[count:])
        starts = [[x0], *([next(parts) for _ in range(length)] for length in ctx.lengths)]
        due = record.due()
        first = next((n[0] for n in due if n), len(cotangents))
        gradients: list[Tensor | None] = [None] * count
        a: list[Tensor | None] = [None]
        with record.problem.field.recompute():
            for number in reversed(range(len(record.spans))):
                a, found = _step_back(record, number, starts[number], due[number], cotangents, a)
                for index, part in zip(record.inputs.of[record.spans[number].piece], found, strict=True):
                    gradients[index] = _sum(gradients[index], part)
        total = a[0]
        for cotangent in cotangents[:first]:
            total = _sum(total, cotangent)
        return None, None, total, *gradients


def _step_back(
    record: _Record,
    number: int,
    start: list[Tensor],
    due: list[int],
    cotangents: tuple[Tensor | None, ...],
    a: list[Tensor | None],
) -> tuple[list[Tensor | None], Sequence[Tensor | None]]:
    """Cotangents of what a step started from and of the tensors F used in it, from those of what it ended in."""
    piece = record.spans[number].piece
    tensors = record.inputs.piece(piece)
    wanted = [i for i in due if cotangents[i] is not None]
    if not wanted and all(part is None for part in a):
        return [None] * len(start), [None] * len(tensors)
    stats = record.problem.stats
    before = stats.nfe_backward
    with torch.enable_grad():
        start = [part.detach().requires_grad_() for part in start]
        end, outputs = record.redo(number, start, wanted)
    stats.vjps += stats.nfe_backward - before
    pairs = [(root, seed) for root, seed in zip(end, a, strict=True) if seed is not None and root.requires_grad]
    pairs += [(output, cotangents[i]) for output, i in zip(outputs, wanted, strict=True)]
    roots = [root for root, _ in pairs]
    record.inputs.check(piece, roots, *start)
    found = vjp(roots, [*start, *tensors], [seed for _, seed in pairs], keep=record.inputs.computed)
    return list(found[: len(start)]), found[len(start) :]


def _differentiable(
    record: _Record, x0: Tensor, tensors: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The same gradients with a graph of their own, for second derivatives: all steps again, on the tape."""
    start = [x0]
    states = [x0] * len(cotangents)
    with record.problem.field.recompute():
        for number, due in enumerate(record.due()):
            before = start
            start, outputs = record.redo(number, before, due)
            record.inputs.check(record.spans[number].piece, [*start, *outputs], *before)
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

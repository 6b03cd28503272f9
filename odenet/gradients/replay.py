"""The states of a recorded solve as differentiable functions of x0 and of the tensors that F uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from odenet.gradients.inputs import Inputs, needs_gradient, vjp
from odenet.gradients.pullback import plus
from odenet.gradients.record import Record
from odenet.gradients.registry import check_solver, gradients
from odenet.solvers.loop import integrate
from odenet.solvers.problem import Problem, transforms
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution
from odenet.solvers.stepper import Trial

Cotangents = Sequence[Tensor | None]
Gradients = tuple[Tensor | None, list[Tensor | None]]


class Sweep(Protocol):
    """One way back over a recorded grid, made for one solve."""

    def keep(self, record: Record, start: list[Tensor], trial: Trial) -> None:
        """Called with every accepted step, after it was recorded, and with what it started from."""
        ...

    def kept(self) -> list[Tensor]:
        """Hands over, once, the tensors to be held for the backward pass."""
        ...

    def back(self, record: Record, x0: Tensor, kept: list[Tensor], cotangents: Cotangents) -> Gradients:
        """Gradients with respect to x0 and to each of the record's inputs from the cotangents of the outputs.

        Those of outputs at t0 are left out of the first.
        """
        ...


class Replayed:
    """A gradient method that walks a recorded grid backwards. To add one, say which sweep it makes.

    Under the transforms of `torch.func`, which differentiate operations and not the way back of a custom function, the
    same steps are taken on the tape.
    """

    name: str
    exact = True
    backends: tuple[str, ...] = ("native",)
    own_steps = True
    sums = True  # whether its sweep differentiates sums over the steps on the way back
    memory: str
    reference: str

    def solvers(self) -> list[str]:
        """The native solvers that it is defined for."""
        return list(solvers)

    def check(self, scheme: Scheme, options: Mapping[str, Any]) -> None:
        """Raise `InputError` if the scheme or the options cannot be used."""
        check_solver(self.name, scheme, self.solvers())
        self.check_options(options)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `InputError` if the options cannot be used."""
        raise NotImplementedError

    def sweep(self, problem: Problem) -> Sweep:
        """The way back for one solve."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Solution:
        """Solve `problem` so that its states can be differentiated."""
        if not torch.is_grad_enabled():
            return integrate(problem)
        if transforms():
            return gradients["autograd"].solve(problem)
        inputs = Inputs(problem)
        record, sweep = Record(problem, problem.stepper, inputs), self.sweep(problem)
        ends, summed = problem.ends, Sum()
        if ends is not None and self.sums:
            problem.ends, record.measure = None, partial(ends.measure, unpack=ends.unpack)

        def watch(trial: Trial) -> None:
            sweep.keep(record, record.add(trial), trial)
            if record.measure is not None:
                summed.add(record, trial)

        problem.field.observer = inputs.observe
        with torch.no_grad():
            solution = integrate(problem, watch)
        problem.field.observer = None
        kept, total = sweep.kept(), summed.total
        if ends is not None:
            ends.total = total
        if not needs_gradient(problem, inputs):
            return solution
        problem.field.hold()
        record.times = solution.times
        outputs = solution.states if total is None else [*solution.states, total]
        states = [*_Replay.apply(record, sweep, kept, outputs, problem.x0, *inputs.tensors)]
        if ends is not None and total is not None:
            ends.total = states.pop()
        return Solution(states, solution.times, solution.stats, error=solution.error, hits=solution.hits)


class Sum:
    """A sum over the steps, added up while they are taken; no graph, and no trace in F."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    @torch.no_grad()
    def add(self, record: Record, trial: Trial) -> None:
        """Add what an accepted step has to say."""
        field = record.problem.field
        observer, field.observer = field.observer, None
        with field.consistency.recomputation():
            value = record.measured(len(record.spans) - 1, trial.x, trial.x_next)
        field.observer = observer
        self.total = value if self.total is None else self.total + value


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, record: Record, sweep: Sweep, kept: list[Tensor], states: list[Tensor], x0: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.record, ctx.sweep, ctx.tensors = record, sweep, tensors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x0, *tensors, *kept)
        held = {id(tensor) for tensor in kept}
        kept.clear()
        return tuple(_own(state, held, states[:i], x0) for i, state in enumerate(states))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        record: Record = ctx.record
        x0, *saved = ctx.saved_tensors
        if record.measure is not None:
            cotangents, record.seed = cotangents[:-1], cotangents[-1]
        if torch.is_grad_enabled():
            return None, None, None, None, *differentiable_again(record, x0, ctx.tensors, cotangents)
        with record.problem.field.recompute():
            a, found = ctx.sweep.back(record, x0, saved[len(ctx.tensors) :], cotangents)
        for cotangent in cotangents[: record.at_start()]:
            a = plus(a, cotangent)
        return None, None, None, None, a, *found


def _own(state: Tensor, held: set[int], earlier: list[Tensor], x0: Tensor) -> Tensor:
    """A state as an output of its own: one that nothing else holds may be changed in place by whoever gets it."""
    if state is x0 or any(state is other for other in earlier):
        return state.clone()
    return state.view_as(state) if id(state) in held else state


def differentiable_again(
    record: Record, x0: Tensor, tensors: tuple[Tensor, ...], cotangents: Cotangents
) -> tuple[Tensor | None, ...]:
    """The same gradients with a graph of their own, for second derivatives: all steps again, on the tape."""
    start = [x0 if x0.requires_grad else x0.detach().requires_grad_()]
    states: list[Tensor] = [x0] * len(cotangents)
    total: Tensor | None = None
    with record.problem.field.recompute():
        for number, due in enumerate(record.due()):
            before = start
            start, outputs = record.redo(number, before, due)
            record.inputs.check(record.spans[number].piece, [*start, *outputs], *before)
            for index, output in zip(due, outputs, strict=True):
                states[index] = output
            if record.seed is not None:
                total = plus(total, record.measured(number, before[0], start[0]))
    roots = [*zip(states, cotangents, strict=True), *([] if total is None else [(total, record.seed)])]
    pairs = [(s, g) for s, g in roots if g is not None and s.requires_grad]
    inputs = [t for t in (x0, *tensors) if t.requires_grad]
    grads = vjp([state for state, _ in pairs], inputs, [g for _, g in pairs], create_graph=True)
    found = dict(zip(map(id, inputs), grads, strict=True))
    return tuple(found.get(id(t)) for t in (x0, *tensors))

"""Checkpointed backprop: one step's graph at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.gradients.binomial import Store, backwards
from odenet.gradients.per_sample import replay_samples
from odenet.gradients.pullback import Pullback, leaf, plus
from odenet.gradients.record import Record
from odenet.gradients.registry import gradients
from odenet.gradients.replay import Cotangents, Gradients, Replayed
from odenet.gradients.sample_states import StoredRounds, whole_step
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import check_options
from odenet.solvers.stepper import Trial


class StepBack(Protocol):
    """Pulls cotangents back through one step."""

    def __call__(
        self,
        pullback: Pullback,
        number: int,
        start: list[Tensor],
        due: list[int],
        cotangents: Cotangents,
        a: list[Tensor | None],
    ) -> list[Tensor | None]:
        """Cotangents of what step `number` started from.

        Args:
            pullback: collects the gradients of the tensors that F uses.
            number: the step.
            start: the state that it started from, and the memory.
            due: indices of the outputs that it passed over and that have a cotangent.
            cotangents: of the outputs.
            a: of the state and the memory that it ended in; empty where nothing has arrived yet.
        """
        ...


class StoredStates:
    """A sweep from kept states: all of them, or `checkpoints` beside x0, from which the others are redone.

    Args:
        step_back: the way back over one step.
        checkpoints: how many states may be kept, or None for all.
        steps: the number of steps, or None if it is not known.
    """

    def __init__(self, step_back: StepBack, checkpoints: int | None, steps: int | None):
        self.step_back, self.checkpoints = step_back, checkpoints
        self._store = Store(checkpoints, steps)
        self._layout: list[tuple[int, int]] = []

    def keep(self, record: Record, start: list[Tensor], trial: Trial) -> None:
        """Keep the start of the step, if it is among those to be kept."""
        self._store.put(len(record.spans) - 1, start)

    def hold(self, starts: dict[int, list[Tensor]]) -> None:
        """Take starts of steps that another walk has recorded."""
        self._store.starts = starts

    def kept(self) -> list[Tensor]:
        """The kept states, flat."""
        self._layout, tensors = self._store.take()
        return tensors

    def back(self, record: Record, x0: Tensor, kept: list[Tensor], cotangents: Cotangents) -> Gradients:
        """Step by step from the end, redoing steps from the last kept state before each."""
        pullback, parts = Pullback(record), iter(kept)
        del kept
        stack = [(0, [x0]), *((number, [next(parts) for _ in range(length)]) for number, length in self._layout)]
        due = [[i for i in indices if cotangents[i] is not None] for indices in record.due()]
        a: list[Tensor | None] = []
        x_next = None
        for end, number, start in backwards(len(record.spans), stack, self.checkpoints, record.advance):
            if record.seed is not None:
                last = record.advance(start, number, end)
                x_next = record.advance(last, end, end + 1)[0] if x_next is None else x_next
                at_start, at_end = pullback.through_measure(end, last[0], x_next)
                a = self._back(pullback, end, last, due[end], cotangents, [plus(a[0] if a else None, at_end), *a[1:]])
                a[0], x_next = plus(a[0], at_start), last[0]
            elif due[end] or any(part is not None for part in a):
                a = self._back(pullback, end, record.advance(start, number, end), due[end], cotangents, a)
        return a[0] if a else None, pullback.gradients

    def _back(self, pullback: Pullback, number: int, *step: Any) -> list[Tensor | None]:
        pullback.stats.steps_backward += 1
        return self.step_back(pullback, number, *step)


class Checkpoint(Replayed):
    """The forward pass keeps the state at each accepted step and no graph; the backward pass rebuilds one step's graph
    at a time, on the grid of the forward pass, and differentiates it.

        a_n = (∂Ψ_n/∂x_n)ᵀ a_{n+1},   θ̄ += (∂Ψ_n/∂θ)ᵀ a_{n+1},   x_{n+1} = Ψ_n(x_n)

    Exact for the accepted grid; costs one more evaluation of F for each of the forward pass's accepted stages. With the
    option checkpoints=c only c states are kept beside x0, and steps are redone from them: for up to C(c + 1 + r, r)
    steps no step more than r times.

    Reference:
        Zhuang et al. 2020, Adaptive Checkpoint Adjoint Method for Gradient Estimation in Neural ODE.
    """

    name = "checkpoint"
    memory = (
        "one state a step with what the solver remembers beside it (past slopes, stages of implicit methods), or "
        "`checkpoints` of them; and the activations of one step"
    )
    reference = "Zhuang et al. 2020 (ACA); Griewank and Walther 2000"

    def check_options(self, options: Mapping[str, Any]) -> None:
        check_checkpoints(self.name, options)

    def sweep(self, problem: Problem) -> StoredStates:
        return stored_states(problem, step_back)

    def solve_samples(self, problem: SampleProblem) -> SampleSolution:
        """Solve `problem`, each sample with its own steps, so that its states can be differentiated."""
        return replay_samples(problem, StoredRounds(whole_step, problem.scheme.gradient_options.get("checkpoints")))


def step_back(
    pullback: Pullback,
    number: int,
    start: list[Tensor],
    due: list[int],
    cotangents: Cotangents,
    a: list[Tensor | None],
) -> list[Tensor | None]:
    """Back over one step through its whole graph."""
    record, stats = pullback.record, pullback.stats
    before = stats.nfe_backward
    with torch.enable_grad():
        leaves = [leaf(part) for part in start]
        end, outputs = record.redo(number, leaves, due)
    stats.vjps += stats.nfe_backward - before
    pairs = [*zip(end, a, strict=False), *zip(outputs, (cotangents[i] for i in due), strict=True)]
    return pullback.through(record.spans[number].piece, pairs, leaves)


def stored_states(problem: Problem, step_back: StepBack) -> StoredStates:
    """The sweep that the options ask for."""
    steps = None if problem.scheme.adaptive else len(problem.spans())
    return StoredStates(step_back, problem.scheme.gradient_options.get("checkpoints"), steps)


def check_checkpoints(name: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the options are at most a positive number of checkpoints."""
    check_options(f"option of gradient={name!r}", options, ("checkpoints",))
    count = options.get("checkpoints")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise InputError(f"checkpoints must be a positive integer, or left out to keep every state, got {count!r}")


gradients.add("checkpoint", Checkpoint())

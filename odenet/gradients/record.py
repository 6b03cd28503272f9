"""What a forward pass leaves behind for the way back: the accepted grid, and the tensors that F uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from odenet.gradients.inputs import Inputs
from odenet.solvers.loop import Outputs, states_at
from odenet.solvers.problem import Problem
from odenet.solvers.stepper import NOTHING, Memory, Span, Stepper, Trial


@dataclass
class Record:
    """The accepted grid: where the steps went, and the host times of what the method carries beside the state.

    Attributes:
        problem: what was solved.
        stepper: what took the steps.
        inputs: the tensors that F uses.
        times: times of the outputs.
        spans: the accepted steps.
        memory_times: for each step, the times that belong to the memory it was given.
        measure: what is summed over the steps, from the states at both ends of each; None if nothing is.
        seed: cotangent of that sum on the way back; None where there is none.
    """

    problem: Problem
    stepper: Stepper
    inputs: Inputs
    times: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    memory_times: list[tuple[float, ...]] = field(default_factory=list)
    measure: Callable[[Problem, Span, Tensor, Tensor], Tensor] | None = None
    seed: Tensor | None = None

    def add(self, trial: Trial) -> list[Tensor]:
        """Add an accepted step; returns what it started from: the state, and the memory unless it was made there."""
        memory = NOTHING if self.begins(len(self.spans), trial.span) else trial.given
        self.spans.append(trial.span)
        self.memory_times.append(memory.times)
        return [trial.x, *memory.tensors]

    def begins(self, number: int, span: Span | None = None) -> bool:
        """Whether step `number` (going over `span`, if it is yet to be added) begins with a memory made anew."""
        span = self.spans[number] if span is None else span
        return number == 0 or (not self.stepper.lasting and self.spans[number - 1].piece != span.piece)

    def ends(self, number: int) -> bool:
        """Whether the memory that step `number` leaves is given to no other step."""
        return number + 1 == len(self.spans) or self.begins(number + 1)

    def due(self) -> list[list[int]]:
        """For each step, the indices of the outputs that it passes over."""
        outputs, due = Outputs(self.problem, self.times), []
        for span in self.spans:
            first = len(outputs.states)
            outputs.states += [self.problem.x0] * len(outputs.due(span))
            due.append(list(range(first, len(outputs.states))))
        return due

    def at_start(self) -> int:
        """Number of outputs at t0: x0 itself."""
        return len(Outputs(self.problem, self.times).states)

    def redo(self, number: int, start: Sequence[Tensor], due: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Step `number` again from (x, memory): the next such state, and the outputs it passes over."""
        span = self.spans[number]
        f = self.problem.field.piece(span.piece)
        x, *tensors = start
        if self.begins(number):
            memory = self.stepper.start(f, span.t, x)
        else:
            memory = Memory(tuple(tensors), self.memory_times[number])
        trial = self.stepper.step(f, span, x, memory)
        outputs = states_at(self.stepper, f, trial, [self.times[i] for i in due])
        return [trial.x_next, *(() if self.ends(number) else trial.memory.tensors)], outputs

    def measured(self, number: int, x: Tensor, x_next: Tensor) -> Tensor:
        """What step `number`, from x to x_next, adds to the sum over the steps."""
        assert self.measure is not None
        return self.measure(self.problem, self.spans[number], x, x_next)

    @torch.no_grad()
    def advance(self, start: Sequence[Tensor], number: int, until: int) -> list[Tensor]:
        """What step `until` starts from, by redoing the steps from `number` on."""
        start = list(start)
        for n in range(number, until):
            start, _ = self.redo(n, start, [])
            self.problem.stats.steps_backward += 1
        return start

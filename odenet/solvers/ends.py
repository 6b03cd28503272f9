"""What is asked of each accepted step: a sum over them, or the states at their ends as outputs of the solve."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from odenet.solvers.solution import Solution
from odenet.solvers.stepper import Span

if TYPE_CHECKING:
    from odenet.solvers.loop import Outputs
    from odenet.solvers.problem import Problem

Unpack = Callable[[Tensor], Any]


class Measure(Protocol):
    """What is summed over the steps of a solve."""

    def __call__(self, problem: Problem, span: Span, x: Tensor, x_next: Tensor, unpack: Unpack | None) -> Tensor:
        """(batch, measures).

        Args:
            problem: what is being solved.
            span: the step.
            x: the state at its start.
            x_next: at its end.
            unpack: from the state that is walked to the one that was given, if they differ.
        """
        ...


class StepEnds:
    """The accepted steps of a native solve without events, and what is to be summed over them.

    A gradient method that walks back step by step sums on the way and differentiates on the way back, and keeps nothing
    for it. Any other gives the states at the ends of the steps, as differentiable as its outputs, to be summed then.

    Args:
        measure: what is summed.

    Attributes:
        total: the sum, (batch, measures), where the gradient method has taken it.
        unpack: as `measure` is given it.
        problem: what was solved, once it has been.
        spans: the accepted steps.
        states: the state that each of them ended in.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.total: Tensor | None = None
        self.unpack: Unpack | None = None
        self.problem: Problem | None = None
        self.spans: list[Span] = []
        self.states: list[Tensor] = []
        self._at: list[int] = []
        self._added: set[int] = set()

    def add(self, span: Span, outputs: Outputs) -> None:
        """Ask for the state at the end of an accepted step, unless it was asked for already."""
        sign, t = outputs.sign, span.t_next
        index = bisect_right(outputs.ts, sign * t, lo=len(outputs.states), key=lambda t: sign * t)
        if index == len(outputs.states) or outputs.ts[index - 1] != t:
            outputs.ts.insert(index, t)
            outputs.hits.insert(index, None)
            self._added.add(index)
            index += 1
        self.spans.append(span)
        self._at.append(index - 1)

    def take(self, problem: Problem, solution: Solution) -> Solution:
        """Take the states from a solution; returns it with the outputs that were asked for."""
        if self.total is not None:
            return solution
        self.problem = problem
        self.states = [solution.states[i] for i in self._at]
        left = [i for i in range(len(solution.states)) if i not in self._added]
        states, times = [solution.states[i] for i in left], [solution.times[i] for i in left]
        return Solution(states, times, solution.stats, error=solution.error)

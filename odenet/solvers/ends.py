"""The states at the ends of the accepted steps, as outputs of a solve: differentiable under every gradient method."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from torch import Tensor

from odenet.solvers.solution import Solution
from odenet.solvers.stepper import Span

if TYPE_CHECKING:
    from odenet.solvers.loop import Outputs
    from odenet.solvers.problem import Problem


class StepEnds:
    """The accepted steps of a native solve without events, and the states between which they went.

    Attributes:
        problem: what was solved, once it has been.
        spans: the accepted steps.
        states: the state that each of them ended in.
    """

    def __init__(self) -> None:
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
        self.problem = problem
        self.states = [solution.states[i] for i in self._at]
        left = [i for i in range(len(solution.states)) if i not in self._added]
        states, times = [solution.states[i] for i in left], [solution.times[i] for i in left]
        return Solution(states, times, solution.stats, error=solution.error)

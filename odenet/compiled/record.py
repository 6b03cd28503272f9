"""What every compiled solve keeps and counts, whatever makes its code: the accepted grid, the answers, the work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers
from odenet.solvers.stepper import Span

FIRST_RECORD, LARGEST_RECORD = 64, 2**28
ONE_THREAD = 2**12  # elements of a state up to which one thread walks faster than several that wait for each other


@dataclass
class Chunk:
    """A part of the accepted grid, with the states at the starts of its steps.

    Attributes:
        grid: ends of the steps, one more than there are steps, and then anything.
        sizes: of the steps, signed, and then anything.
        states: at their starts; empty if they are not kept.
        count: how many steps there are.
        first: the first of them that belongs to this part.
        piece: of depth, on which they lie.
    """

    grid: Tensor
    sizes: Tensor
    states: Tensor
    count: int
    first: int = 0
    piece: int = 0


@dataclass
class Walked:
    """What a compiled solve did.

    Attributes:
        chunks: the accepted grid.
        states: the answers.
        inside: times of the answers between t0 and t1, in float64 on the state's device.
    """

    chunks: Sequence[Chunk]
    states: list[Tensor]
    inside: Tensor


@dataclass
class Grid:
    """The steps of a fixed-step solve.

    Attributes:
        spans: the steps.
        ends: of the steps, one more than there are, in float64 on the state's device.
        sizes: of the steps, signed.
        place: of each end.
        lengths: of the steps.
        pieces: of depth, each with its number, its first step and the one after its last.
    """

    spans: list[Span]
    ends: Tensor
    sizes: Tensor
    place: dict[float, int]
    lengths: list[float]
    pieces: list[tuple[int, int, int]]

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> Grid:
        """The grid of such steps."""
        ends, sizes = [spans[0].t, *(span.t_next for span in spans)], [span.h for span in spans]
        grid, hs = (torch.tensor(numbers, dtype=torch.float64, device=device) for numbers in (ends, sizes))
        numbers = [span.piece for span in spans]
        cuts = [0, *(n for n in range(1, len(numbers)) if numbers[n] != numbers[n - 1]), len(numbers)]
        pieces = [(numbers[first], first, last) for first, last in pairwise(cuts)]
        return cls(list(spans), grid, hs, {t: i for i, t in enumerate(ends)}, [abs(h) for h in sizes], pieces)


class Solves:
    """One kind of solve: its method, how long its record is, and what it counts.

    Args:
        problem: a solve of that kind.

    Attributes:
        tableau: of the method.
        used: stages that a step without an error estimate takes.
        tried: evaluations of F that each adaptive step takes.
        control: the controller and the order of the error estimate of an adaptive solve, else None.
        compilations: how many pieces of code have been made so far.
        capacity: steps that the next record has room for.
        takes_autocast: whether F may run under autocast.
        takes_pieces: whether F may change along depth, and steps may have to end at stops.
        observed: whether F was looked at where gradients are enabled, as it is now.
    """

    takes_autocast = takes_pieces = observed = False

    def __init__(self, problem: Problem):
        scheme = problem.scheme
        stepper = solvers[scheme.solver]
        assert isinstance(stepper, ExplicitRungeKutta)
        self.tableau, self.used = stepper.tableau, stepper.tableau.used
        self.tried = self.tableau.stages - 1 if self.tableau.fsal else self.tableau.stages
        self.control = None
        if scheme.adaptive:
            assert stepper.error_order is not None
            self.control = scheme.step_controller, stepper.error_order
        self.compilations, self.capacity = 0, FIRST_RECORD
        self._grid: Grid | None = None

    def room(self, kept: int) -> int:
        """Steps that a record is made for.

        Args:
            kept: bytes that are kept of each, or 0.
        """
        return max(8, min(self.capacity, LARGEST_RECORD // kept)) if kept else self.capacity

    def grid(self, problem: Problem) -> Grid:
        """The steps of a fixed-step problem; made anew only where they have changed."""
        spans, device = problem.spans(), problem.x0.device
        if self._grid is None or self._grid.spans != spans or self._grid.ends.device != device:
            self._grid = Grid.of(spans, device)
        return self._grid

    def evaluations(self, problem: Problem, tries: int, accepted: int, pieces: int = 1) -> int:
        """Evaluations of F that an adaptive solve needs.

        Args:
            problem: what was solved.
            tries: accepted and rejected steps.
            accepted: accepted steps.
            pieces: of depth that were walked.
        """
        nfe = pieces + (problem.scheme.first_step is None) + tries * (self.tableau.stages - 1)
        return nfe if self.tableau.fsal else nfe + accepted - pieces  # where steps begin that follow an accepted one

    def count_steps(self, problem: Problem, nfe: int, sizes: list[float], tries: int, forced: int) -> bool:
        """Count an adaptive solve; False, with nothing counted, if it took more evaluations than it may.

        Args:
            problem: what was solved.
            nfe: evaluations of F.
            sizes: of the accepted steps, signed.
            tries: accepted and rejected steps.
            forced: steps that were accepted at h_min whatever their error.
        """
        scheme, stats, accepted = problem.scheme, problem.stats, len(sizes)
        if scheme.max_nfe is not None and nfe > scheme.max_nfe:
            return False
        stats.nfe, stats.accepted, stats.rejected, stats.forced = nfe, accepted, tries - accepted, forced
        stats.h = [abs(h) for h in sizes]
        self.capacity = max(self.capacity, 2 ** math.ceil(math.log2(accepted + 1)))
        return True

    def count_fixed(self, problem: Problem, grid: Grid) -> None:
        """Count a fixed-step solve."""
        stats, count = problem.stats, len(grid.spans)
        stats.nfe, stats.accepted, stats.h = count * self.used, count, list(grid.lengths)

    def count_back(self, problem: Problem, steps: int, dense: int) -> None:
        """Count a way back.

        Args:
            problem: what was solved.
            steps: of it.
            dense: those of them for which F was found at their ends as well, for answers inside.
        """
        stats = problem.stats
        stages = steps * self.used + dense * (self.tableau.stages - self.used)
        stats.nfe_backward += stages
        stats.vjps += stages
        stats.steps_backward += steps


def inside(problem: Problem) -> list[float]:
    """Times of the answers between t0 and t1."""
    return [t for t in problem.ts if t not in (problem.t0, problem.t1)]


def answers(problem: Problem, end: Tensor, between: Iterable[Tensor]) -> list[Tensor]:
    """The states at the problem's times, from the last one and those between t0 and t1."""
    rest = iter(between)
    return [problem.x0 if t == problem.t0 else end if t == problem.t1 else next(rest) for t in problem.ts]

"""What C++ is told of samples with their own steps, and what it leaves: where each is, and the accepted steps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from odenet.compiled.per_sample.walk import Phase
from odenet.solvers.per_sample import SampleProblem
from odenet.solvers.tableau import Tableau

F64 = torch.float64
FIELDS = ("t", "h", "error", "the error before", "bad", "tries", "accepted", "forced", "last", "upcoming")
TRIES, ACCEPTED, FORCED, LAST, UPCOMING = range(5, 10)

NUMBERS = ("rtol", "atol", "h_min", "h_max", "max_steps", "first_step")
COUNTS = (
    "batch", "moving", "threads", "inputs", "outputs", "fresh", "keep", "capacity", "base", "used", "failed", "padded",
    "width",
)  # fmt: skip
PLACES = (
    "given", "begin", "end", "x", "slope", "at", "order", "times", "at_times", "whose", "before", "tried", "ts", "ends",
    "sizes", "xs", "grid", "grid_size", "which", "work", "a", "seeds", "inner", "gradients",
)  # fmt: skip


class Samples(ctypes.Structure):
    """`Samples` of samples.h."""

    _fields_ = [
        *((name, ctypes.c_double) for name in NUMBERS),
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in PLACES),
    ]


@dataclass
class Record:
    """Accepted steps in the order in which they were made; those of a sample in their order.

    Attributes:
        steps: of each its sample, the step of that sample before it or -1, and which try it was, (3, capacity).
        times: where it begins and ends, and its signed size, (3, capacity).
        xs: the states at the starts, (capacity, ...), or none.
        count: how many there are.
    """

    steps: Tensor
    times: Tensor
    xs: Tensor
    count: int

    @classmethod
    def joined(cls, parts: Sequence[Record]) -> Record:
        """One record of several."""
        if len(parts) == 1:
            return parts[0]
        steps, times = (torch.cat([getattr(p, name)[:, : p.count] for p in parts], 1) for name in ("steps", "times"))
        return cls(steps, times, torch.cat([p.xs[: p.count] for p in parts]), sum(p.count for p in parts))

    def show(self, call: Samples) -> None:
        """Tell C++ where it lies."""
        call.capacity = self.steps.shape[1]
        call.whose, call.before, call.tried = _rows(self.steps)
        call.ts, call.ends, call.sizes = _rows(self.times)
        call.xs = self.xs.data_ptr()


@dataclass
class Walked:
    """What a row-wise solve of samples with their own steps did.

    Attributes:
        record: the accepted steps.
        at: numbers of each sample where it ended, those of `FIELDS`, (fields, batch).
        ends: the last state of each sample, (batch, ...).
        times: times of the answer, (times, batch), if some lie inside a sample's interval; else none.
        outputs: the states there.
    """

    record: Record
    at: Tensor
    ends: Tensor
    times: Tensor
    outputs: Tensor

    @cached_property
    def phases(self) -> list[Phase]:
        """The record as rounds in which every sample makes a step."""
        whose = self.record.steps[0, : self.record.count]
        accepted = self.at[ACCEPTED].long()
        most, order = int(accepted.max()), whose.argsort(stable=True)
        place = torch.arange(len(whose)) - (accepted.cumsum(0) - accepted)[whose[order]]
        ends = torch.zeros(2, most, len(accepted), dtype=F64)
        ends[:, place, whose[order]] = self.record.times[:2, order]
        xs = self.ends.new_zeros(most, *self.ends.shape)
        xs[place, whose[order]] = self.record.xs[order]
        return [Phase(torch.arange(len(accepted)), accepted, most, (ends, xs))]


def count(problem: SampleProblem, tableau: Tableau, at: Tensor, record: Record, padded: int) -> bool:
    """Count a solve as the eager loop does; False, with nothing counted, if it took more than it may.

    Args:
        problem: what was solved.
        tableau: by which method.
        at: numbers of each sample where it ended.
        record: the accepted steps.
        padded: evaluations of F for lanes, empty ones included.
    """
    scheme, stats, each, steps = problem.scheme, problem.stats, problem.stats.samples, record.count
    assert each is not None
    tries, accepted, forced = at[TRIES : FORCED + 1].long()
    most = int(tries.max())
    if not scheme.adaptive:
        nfe, calls = tableau.used * tries, tableau.used * most
    else:
        moving = problem.field.timetable.count > 0
        starts, a_try = 2 if scheme.first_step is None else 1, tableau.stages - 1
        nfe, calls = starts * moving + a_try * tries, starts * (most > 0) + a_try * most
        if not tableau.fsal:  # F where steps begin that do not follow a rejected one
            nfe = nfe + accepted - moving.long()
            whose, _, tried = record.steps[:, :steps]
            calls += _different(tried[record.times[1, :steps] != problem.t1[whose]])
    if scheme.max_nfe is not None and bool((nfe > scheme.max_nfe).any()):
        return False
    each.nfe.copy_(nfe)
    each.accepted, each.rejected, each.forced = accepted, tries - accepted, forced
    each.history.append((record.steps[0, :steps], record.times[2, :steps].abs()))
    each.evaluated, each.padded = int(nfe.sum()), padded
    stats.nfe += calls
    stats.accepted, stats.rejected, stats.forced = (int(part.sum()) for part in (accepted, each.rejected, forced))
    return True


def count_back(problem: SampleProblem, tableau: Tableau, accepted: Tensor, record: Record, inner: Tensor) -> None:
    """Count a way back as the eager one does, which redoes the accepted steps of a round together.

    Args:
        problem: what was solved.
        tableau: by which method.
        accepted: steps of each sample.
        record: the steps.
        inner: for each whether there are outputs inside, or none.
    """
    stats, each, (whose, _, tried) = problem.stats, problem.stats.samples, record.steps[:, : record.count]
    assert each is not None
    each.nfe_backward += tableau.used * accepted
    rounds = _different(tried)
    calls = tableau.used * rounds
    if len(inner) and tableau.stages > tableau.used:  # F at the ends of those steps
        each.nfe_backward += torch.bincount(whose[inner], minlength=len(accepted))
        calls += _different(tried[inner])
    stats.nfe_backward, stats.vjps = stats.nfe_backward + calls, stats.vjps + calls
    stats.steps_backward += rounds


def _different(numbers: Tensor) -> int:
    return int((torch.bincount(numbers) > 0).sum())


def _rows(x: Tensor) -> tuple[int, ...]:
    """Where the rows of a matrix begin."""
    return tuple(x.data_ptr() + i * x.stride(0) * x.element_size() for i in range(len(x)))

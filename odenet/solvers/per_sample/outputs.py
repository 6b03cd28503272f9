"""The states that were asked for, gathered from the steps of all samples; and dense output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.spans import Spans
from odenet.solvers.stepper import Stepper, Trial


@dataclass(slots=True)
class Step:
    """Accepted steps of some of the samples, one each.

    Attributes:
        f: F for these samples, on the piece of depth that each step goes over.
        trial: the steps.
        fresh: which of them begin with a memory that was made there, (rows,) on the host.
        end_known: for which of them `trial.end` holds F at the end, where not for all or none, (rows,) on the host.
    """

    f: Rows
    trial: Trial
    fresh: Tensor
    end_known: Tensor | None = None

    @property
    def spans(self) -> Spans:
        """Where they go."""
        spans: object = self.trial.span
        assert isinstance(spans, Spans)
        return spans


class Take(NamedTuple):
    """States taken from one round of steps.

    Attributes:
        rows: which of the steps, on the host.
        t: at which times, or None for their ends.
        first: where they lie in the values of the answer.
    """

    rows: Tensor
    t: Tensor | None
    first: int


class Outputs:
    """Values of the answer, in the order in which they were found, and where each belongs.

    Args:
        problem: what is solved.

    Attributes:
        values: states, each (rows, ...).
        next: for each sample how many times of the answer lie behind it.
        places: for each of them, output * batch + sample; `stopped` * batch + sample for the state in which a sample
            ended early; -1 for one at an event.
        upcoming: for each sample the next time of the answer, infinite if there is none, (batch,).
    """

    def __init__(self, problem: SampleProblem):
        self.batch = problem.x0.shape[0]
        self.ts = problem.t1[None] if problem.ts is None else problem.ts
        self.only_ends, self.stopped = problem.ts is None, len(self.ts)
        self.values: list[Tensor] = []
        self.places: list[Tensor] = []
        self.count = 0
        self.sign = problem.sign
        self.at_start, begins = 0, problem.passed is None
        self.next = (self.ts == problem.t0).sum(0) if problem.passed is None else problem.passed.clone()
        for number in range(int(self.next.max()) if self.batch and begins else 0):
            samples = (self.next > number).nonzero()[:, 0]
            self._add(problem.x0.index_select(0, samples.to(problem.x0.device)), number * self.batch + samples)
        self.at_start = self.count
        self.upcoming = self._upcoming(torch.arange(self.batch))

    def _upcoming(self, samples: Tensor) -> Tensor:
        number = self.next[samples]
        t = self.ts[number.clamp(max=self.stopped - 1), samples]
        return torch.where(number < self.stopped, t, self.sign[samples] * torch.inf)

    def _add(self, x: Tensor, places: Tensor) -> int:
        self.values.append(x)
        self.places.append(places)
        self.count += len(places)
        return self.count - len(places)

    def due(self, samples: Tensor, until: Tensor) -> Tensor:
        """Which samples have a time of the answer up to `until`."""
        return (self.upcoming[samples] - until) * self.sign[samples] <= 0

    def pass_over(self, stepper: Stepper, step: Step, until: Tensor) -> list[Take]:
        """Take the states that are due in accepted steps, up to the times `until`."""
        takes, samples, end = [], step.f.samples, step.spans.host[1]
        interior: Interior | None = None
        due = self.due(samples, until)
        while bool(due.any()):
            rows = due.nonzero()[:, 0]
            t = self.upcoming[samples[rows]]
            ends = t == end[rows]
            if interior is None and not bool(ends.all()):
                interior = Interior(stepper, step, rows[~ends])
            places = self.next[samples[rows]] * self.batch + samples[rows]
            if bool(ends.any()):
                x = step.trial.x_next.index_select(0, rows[ends].to(step.trial.x.device))
                takes.append(Take(rows[ends], None, self._add(x, places[ends])))
            if interior is not None and not bool(ends.all()):
                x = interior.at(rows[~ends], t[~ends])
                takes.append(Take(rows[~ends], t[~ends], self._add(x, places[~ends])))
            self.next[samples[rows]] += 1
            self.upcoming[samples[rows]] = self._upcoming(samples[rows])
            due = self.due(samples, until)
        if interior is not None:
            interior.hand_over(step)
        return takes

    def at(self, number: int, samples: Tensor, x: Tensor) -> int:
        """The states at one of the times of the answer."""
        return self._add(x, number * self.batch + samples)

    def ends(self, samples: Tensor, x: Tensor) -> int:
        """The states at t1, where nothing else was asked for."""
        return self._add(x, samples)

    def stop(self, samples: Tensor, x: Tensor) -> int:
        """The states in which samples ended early."""
        return self._add(x, self.stopped * self.batch + samples)

    def end_at(self, place: int, sample: int) -> None:
        """A sample stops at one of the values after all."""
        for places in self.places:
            if place < len(places):
                places[place] = self.stopped * self.batch + sample
                return
            place -= len(places)

    def event(self, x: Tensor, samples: Tensor, last: Tensor) -> int:
        """States at events; where they are the `last` of their sample, it stops there."""
        return self._add(x, torch.where(last, self.stopped * self.batch + samples, -1))


class Interior:
    """Dense output of some of the accepted steps; what it needs of F is evaluated once.

    Args:
        stepper: what took them.
        step: the steps.
        rows: which of them, increasing, on the host.
    """

    def __init__(self, stepper: Stepper, step: Step, rows: Tensor):
        self.stepper, self.rows, self.device = stepper, rows, step.trial.x.device
        whole = len(rows) == len(step.f.samples)
        self.f = step.f if whole else step.f.select(rows)
        self.part = step.trial if whole else step.trial.rows(rows)
        known = None if step.end_known is None else step.end_known[rows]
        if known is not None and not bool(known.all()):
            self.part = replace(self.part, end=self._completed(known) if bool(known.any()) else None)

    def _completed(self, known: Tensor) -> Tensor:
        """The slopes at the ends, evaluated for the rows for which they are not known."""
        part, missing = self.part, (~known).nonzero()[:, 0]
        index, spans = missing.to(self.device), cast(Any, part.span)
        k = self.f.select(missing)(spans.t_next.index_select(0, index), part.x_next.index_select(0, index))
        assert part.end is not None
        return part.end.index_copy(0, index, k)

    def at(self, rows: Tensor, t: Tensor) -> Tensor:
        """x in some of these steps at one time each, both on the host."""
        spans: Any = self.part.span
        at = t.to(self.device, spans.t.dtype)
        if len(rows) == len(self.rows):
            return self.stepper.interpolate(self.f, self.part, at)  # pyright: ignore[reportArgumentType]
        index = torch.searchsorted(self.rows, rows).to(self.device)
        everywhere: Any = spans.t.index_copy(0, index, at)
        return self.stepper.interpolate(self.f, self.part, everywhere).index_select(0, index)

    def hand_over(self, step: Step) -> None:
        """Let the next steps begin with the slopes that were evaluated at the ends of these."""
        trial, end = step.trial, self.part.end
        if end is None or (trial.end is not None and step.end_known is None):
            return
        if trial.end is None:
            trial.end, step.end_known = torch.zeros_like(end[:1]).expand_as(trial.x), torch.zeros(len(trial.x)).bool()
        assert step.end_known is not None
        trial.end = trial.end.index_copy(0, self.rows.to(self.device), end)
        step.end_known[self.rows] = True


class Dense:
    """x(t) of every sample, by the dense output of its steps.

    Args:
        stepper: what took them.
        sign: direction of each sample.
        x0: the state at the start.
        t0: the start.

    Attributes:
        reached: the time up to which each sample can be asked for.
    """

    def __init__(self, stepper: Stepper, sign: Tensor, x0: Tensor, t0: Tensor):
        self.stepper, self.sign, self.x0, self.t0, self.reached = stepper, sign, x0, t0, t0.clone()
        self.steps: list[Step] = []
        self.ends: list[Tensor] = []

    def add(self, step: Step, until: Tensor) -> None:
        """Keep accepted steps, good until the given times; what F is needed for is evaluated now."""
        interior = Interior(self.stepper, step, torch.arange(len(until)))
        interior.at(interior.rows, step.spans.host[0])
        interior.hand_over(step)
        self.steps.append(step)
        self.ends.append(until)
        self.reached[step.f.samples] = until

    def join(self, later: Dense, samples: Tensor) -> None:
        """Go on with the steps of a later walk of some of the samples."""
        self.steps += later.steps
        self.ends += later.ends
        self.reached[samples] = later.reached[samples]

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x at times t, one for each sample, and which samples have one there."""
        out, known = self.x0, t == self.t0
        samples = torch.cat([step.f.samples for step in self.steps] or [torch.zeros(0, dtype=torch.long)])
        number = torch.cat([torch.full_like(step.f.samples, n) for n, step in enumerate(self.steps)] or [samples])
        row = torch.cat([torch.arange(len(step.f.samples)) for step in self.steps] or [samples])
        start = torch.cat([step.spans.host[0] for step in self.steps] or [t[:0]])
        end = torch.cat(self.ends or [t[:0]])
        at, sign = t[samples], self.sign[samples]
        inside = (((at - start) * sign >= 0) & ((end - at) * sign >= 0)).nonzero()[:, 0]
        taken = torch.full((len(t),), -1).scatter_reduce(
            0, samples[inside].flip(0), inside.flip(0), "amin", include_self=False
        )
        found = taken[taken >= 0]
        known = known | (taken >= 0)
        for n in number[found].unique().tolist():
            mine = found[number[found] == n]
            rows, order = row[mine].sort()
            x = Interior(self.stepper, self.steps[n], rows).at(rows, at[mine][order])
            out = out.index_copy(0, samples[mine][order].to(out.device), x)
        return out, known

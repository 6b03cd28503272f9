"""Gradients with respect to each sample's times: as in `odenet.gradients.times`, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.times import check_knots, constant, moves, root_time
from odenet.solvers.events import Event
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.per_sample.events import event_value
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.hit import SampleHit
from odenet.solvers.solution import Occurrences
from odenet.solvers.times import ends_of


class SampleTimes:
    """The times of a solve in which each sample has its own steps, and which of them a gradient is wanted for.

    Args:
        interval: (t0, t1), numbers or tensors, one for all samples or (batch,).
        ts: times of the answer, (times,) or (times, batch), or None for t1.

    Attributes:
        interval: the interval as constants.
        ts: times of the answer as constants.
    """

    def __init__(self, interval: Sequence[Any], ts: Any):
        self.t0, self.t1 = ends_of(interval)
        if isinstance(ts, Sequence) and any(map(moves, ts)):
            ts = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in ts])
        self.outputs: Any = self.t1 if ts is None else ts
        self.interval, self.ts = (constant(self.t0), constant(self.t1)), constant(ts)

    def start(self, problem: SampleProblem) -> Tensor:
        """x0 as a function of t0."""
        check_knots(problem, self.t0, self.t1)
        if not moves(self.t0):
            return problem.x0
        samples = torch.arange(len(problem.x0))
        return moved(problem, samples, problem.t0, problem.x0, self.t0.expand(len(samples)), -1)

    def finish(self, problem: SampleProblem, solution: SampleSolution) -> Tensor:
        """The values of the answer as functions of its times."""
        values, outputs = solution.values, solution.outputs
        if not moves(self.outputs) or not outputs.places:
            return values
        batch, places = outputs.batch, torch.cat(outputs.places)
        moving = self.outputs.reshape(-1, 1) if self.outputs.dim() < 2 and self.ts is not None else self.outputs
        moving = moving.expand(outputs.stopped, batch)
        for number in range(outputs.stopped):
            mine = (places // max(1, batch) == number) & (places >= 0)
            rows = mine.nonzero()[:, 0]
            samples, order = (places[rows] - number * batch).sort()
            if not len(samples):
                continue
            index = rows[order].to(values.device)
            x = values.index_select(0, index)
            t = outputs.ts[number, samples]
            x = moved(problem, samples, t, x, moving[number][samples.to(moving.device)])
            values = values.index_copy(0, index, x)
        return values


def moved(
    problem: SampleProblem,
    samples: Tensor,
    t: Tensor,
    x: Tensor,
    moving: Tensor,
    sign: int = 1,
    segments: Tensor | None = None,
) -> Tensor:
    """x + sign F(t, x) (moving - t) for some samples, a term of value zero; on the segments that end at t or hold it,
    unless others are given."""
    table, field = problem.field.timetable, problem.field
    if segments is None:
        towards = problem.sign[samples, None]
        passed = (table.end[samples] * towards < t[:, None] * towards).sum(1)
        segments = torch.minimum(passed, (table.count[samples] - 1).clamp(min=0))
    with field.recompute():
        k = field.on(samples, segments)(t.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64), x)
    step = (moving - moving.detach()).to(x.device, x.dtype.to_real()).reshape(-1, *[1] * (x.dim() - 1))
    return x + sign * k * step


def moments(problem: SampleProblem, event: Event, hits: Sequence[tuple[SampleHit, int]], values: Tensor) -> Occurrences:
    """What happened to one event, times and states differentiable.

    Args:
        problem: what was solved.
        event: the event.
        hits: when it happened, each with the place of its state in `values`.
        values: states, their times held fixed.
    """
    device = values.device
    place, sample, segment, element = (
        torch.tensor(numbers, dtype=torch.long)
        for numbers in (
            [place for _, place in hits],
            [hit.sample for hit, _ in hits],
            [hit.segment for hit, _ in hits],
            [hit.element for hit, _ in hits],
        )
    )
    t = torch.tensor([hit.t for hit, _ in hits], dtype=torch.float64)
    x = values.index_select(0, place.to(device))
    ts = t.to(device, torch.float32 if device.type == "mps" else torch.float64)
    if not hits or not torch.is_grad_enabled():
        return Occurrences(ts, x, element, sample)
    f = _Unordered(problem, sample, segment)
    index = torch.arange(len(hits), device=device), element.to(device)
    g = event_value(event, f, t, x)[index]  # pyright: ignore[reportArgumentType]
    if not g.requires_grad:
        return Occurrences(ts, x, element, sample)
    with torch.no_grad(), problem.field.recompute():
        k = f.slope(ts, x)
    at = [f.time(t).requires_grad_(), x.detach().requires_grad_()]
    moving = event.function(*at, *f.args).reshape(len(hits), -1)[index].sum()
    by_time, by_state = torch.autograd.grad(moving, at, allow_unused=True, materialize_grads=True)
    rate = by_time + (by_state.conj() * k).flatten(1).sum(1).real
    ts = root_time(g, rate.detach(), ts)
    shift = (ts - ts.detach()).to(x.dtype.to_real()).reshape(-1, *(1,) * (x.dim() - 1))
    return Occurrences(ts, x + k * shift, element, sample)


class _Unordered:
    """F and its arguments for samples in any order, some of them several times."""

    def __init__(self, problem: SampleProblem, samples: Tensor, segments: Tensor):
        self.field = problem.field
        self.args = problem.field.rows_of(samples.to(problem.x0.device))
        self.each = [problem.field.on(samples[n : n + 1], segments[n : n + 1]) for n in range(len(samples))]

    def time(self, t: Tensor) -> Tensor:
        """Host times as F is shown them."""
        return t.to(self.field.device, self.field.time_dtype)

    def slope(self, t: Tensor, x: Tensor) -> Tensor:
        """F for each of them."""
        rows: Sequence[Rows] = self.each
        return torch.cat([f(t[n : n + 1], x[n : n + 1]) for n, f in enumerate(rows)])

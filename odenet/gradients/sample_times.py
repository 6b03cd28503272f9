"""Gradients with respect to each sample's times: as in `odenet.gradients.times`, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.times import check_knots, constant, moves
from odenet.solvers.per_sample import SampleProblem, SampleSolution
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
        return _moved(problem, samples, problem.t0, problem.x0, self.t0.expand(len(samples)), -1)

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
            x = _moved(problem, samples, t, x, moving[number][samples.to(moving.device)])
            values = values.index_copy(0, index, x)
        return values


def _moved(problem: SampleProblem, samples: Tensor, t: Tensor, x: Tensor, moving: Tensor, sign: int = 1) -> Tensor:
    """x + sign F(t, x) (moving - t) for some samples, a term of value zero."""
    table, field = problem.field.timetable, problem.field
    towards = problem.sign[samples, None]
    passed = (table.end[samples] * towards < t[:, None] * towards).sum(1)
    segments = torch.minimum(passed, (table.count[samples] - 1).clamp(min=0))
    with field.recompute():
        k = field.on(samples, segments)(t.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64), x)
    step = (moving - moving.detach()).to(x.device, x.dtype.to_real()).reshape(-1, *[1] * (x.dim() - 1))
    return x + sign * k * step

"""Steps of each sample over its own grid."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor

from odenet.errors import NonFiniteStateError
from odenet.solvers.per_sample.control import nonfinite_error
from odenet.solvers.per_sample.failures import Watch
from odenet.solvers.per_sample.probe import check_samples
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.solution import SampleSolution
from odenet.solvers.per_sample.spans import Spans
from odenet.solvers.per_sample.walk import Walk
from odenet.solvers.stepper import Trial


class FixedWalk(Walk):
    """Every sample walks its own grid; no look at the device, unless failures are wanted as a status.

    Attributes:
        number: the step that each is to take next, (batch,).
    """

    def __init__(self, problem: SampleProblem, watch: Watch | None):
        super().__init__(problem, watch)
        assert problem.grids is not None
        self.grids, self.number = problem.grids, problem.grids.behind(problem.begin, problem.sign)
        self.patient = self.scheme.on_failure == "status"
        if self.stepper.looks_back:
            self.before = torch.full((len(self.samples), self.stepper.looks_back), math.nan, dtype=torch.float64)

    def begin(self) -> None:
        """The memory of the method, where the samples begin."""
        if self.patient:
            bad = ~_finite(self.x)
            if bool(bad.any()):
                what = "the initial state holds NaN or infinity"
                self._give_up(bad, lambda row: NonFiniteStateError(what, **self._numbers(row)))
        if not len(self.samples):
            return
        t = self._times(self.t)
        check_samples(self.problem, self.samples, t, self.x)
        self.memory = self.stepper.start(self.f, t, self.x)  # pyright: ignore[reportArgumentType]
        if self.watcher is not None:
            self.watcher.begin(self.f, self.t, self.x, self.outputs.batch)

    def round(self) -> None:
        """Every sample takes one step."""
        samples = self.samples
        t_next, step = self.grids.step(samples, self.number[samples], self.t)
        before = None if self.before is None else self.before.masked_fill(self.fresh[:, None], math.nan)
        spans, size = Spans(self.t, t_next, self.x, step, before), step.abs()
        if self._check_budget(size):
            return
        self._complete_first()
        calls = self.f.calls
        trial = self.stepper.step(self.f, cast(Any, spans), self.x, self.memory, self.first)
        self.cost = self.f.calls - calls
        self.rounds += 1
        ok = self._look_for_failures(trial, size) if self.patient or trial.unsolved is not None else None
        landed = t_next == self.end if ok is None else (t_next == self.end) & ok
        self.number[samples] += 1
        if before is not None:
            self.before = torch.cat([before[:, 1:], self.t[:, None]], 1)
        if ok is None or bool(ok.any()):
            self._accept(trial, ok, landed if bool(landed.any()) else None, size)
        if self.broken:
            broken = self.broken
            mask = torch.isin(self.samples, torch.tensor(list(broken)))
            self._give_up(mask, lambda row: broken[int(self.samples[row])][1])
            self.broken = {}

    def _look_for_failures(self, trial: Trial, size: Tensor) -> Tensor | None:
        """Which steps were solved, and ended in finite states; None if all were."""
        ok, unsolved = _finite(trial.x_next), trial.unsolved
        if unsolved is not None:
            ok &= unsolved == 0
        if bool(ok.all()):
            return None
        self.field.settle()
        for row in (~ok).nonzero()[:, 0].tolist():
            left = 0.0 if unsolved is None else float(unsolved[row])
            if left and math.isfinite(left):
                error = self._unsolved(row, left, size)
            else:
                error = nonfinite_error(self.stepper, trial, row, self._numbers(row, size))
            self.broken[int(self.samples[row])] = 1, error
        return ok

    def solution(self) -> SampleSolution:
        """The answer; raises if it is not finite, which is looked at on the CPU only."""
        solution = super().solution()
        values = solution.values.detach()
        if not self.patient and values.device.type == "cpu" and not bool(values.isfinite().all()):
            self._explain()
        return solution

    @torch.no_grad()
    def _explain(self) -> None:
        """Walk again, to say where NaN or infinity appeared first."""
        again = copy.copy(self.problem)
        again.scheme, again.events, again.dense = self.scheme.but(on_failure="status", max_nfe=None), (), False
        with self.field.recompute():
            walk = FixedWalk(again, None)
            walk.begin()
            while len(walk.samples):
                walk.round()
        if walk.errors:
            raise walk.errors[min(walk.errors)]


def _finite(x: Tensor) -> Tensor:
    """Which rows are finite, (rows,) on the host."""
    return x.detach().isfinite().flatten(1).all(1).cpu() if x.dim() > 1 else x.detach().isfinite().cpu()

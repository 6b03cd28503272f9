"""Steps of each sample that hold its local error at its tolerance."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from odenet.errors import NonFiniteFunctionError, NonFiniteStateError
from odenet.solvers.control import LEAST_ERROR, STRETCH, scale
from odenet.solvers.loop import UNSOLVED_SHRINK
from odenet.solvers.per_sample.control import factors, first_steps, norm_each, on_host, retries, rms_each
from odenet.solvers.per_sample.failures import Watch
from odenet.solvers.per_sample.probe import check_samples
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.spans import Spans
from odenet.solvers.per_sample.walk import Walk

UNSOLVED = 1.5  # an error above 1, for steps whose equations were not solved


class AdaptiveWalk(Walk):
    """Every sample picks its own steps."""

    def __init__(self, problem: SampleProblem, watch: Watch | None):
        super().__init__(problem, watch)
        scheme = problem.scheme
        assert self.stepper.error_order is not None
        self.order, self.controller = self.stepper.error_order, scheme.step_controller
        self.norm = rms_each if scheme.norm is None else norm_each(scheme.norm)
        self.bounded = scheme.h_min > 0 or scheme.h_max < math.inf
        self.forwards = bool((problem.sign > 0).all())

    def begin(self) -> None:
        """The slopes where the samples begin, and sizes for their first steps."""
        bad = ~on_host(rms_each(self.x)).isfinite()
        if bool(bad.any()):
            what = "the initial state holds NaN or infinity"
            self._give_up(bad, lambda row: NonFiniteStateError(what, **self._numbers(row)))
        if not len(self.samples):
            return
        t = self._times(self.t)
        self.first = self.f(t, self.x)
        check_samples(self.problem, self.samples, t, self.x, self.first)
        self.memory = self.stepper.start(self.f, t, self.x, self.first)  # pyright: ignore[reportArgumentType]
        bad = ~on_host(rms_each(self.first)).isfinite()
        if bool(bad.any()):
            what = "F returned NaN or infinity for the initial state"
            self._give_up(bad, lambda row: NonFiniteFunctionError(what, **self._numbers(row)))
        if self.scheme.first_step is None and len(self.samples):
            end = self.table.piece_end[self.samples, self.segment]
            order = self.stepper.first_order or self.order
            self.h = first_steps(self.f, self.t, end, self.x, self.first, order, self.rtol, self.atol, self.norm)
        if self.watcher is not None:
            self.watcher.begin(self.f, self.t, self.x, self.outputs.batch)

    def round(self) -> None:
        """Every sample tries one step."""
        h = self.h = self.h.clamp(self.scheme.h_min, self.scheme.h_max) if self.bounded else self.h
        left = self.end - self.t if self.forwards else (self.end - self.t).abs()
        lands = h * STRETCH >= left
        if self.bounded:
            lands &= (h >= left) | (left <= self.scheme.h_max + self.resolution)
        t_next = torch.where(lands, self.end, self.t + (h if self.forwards else self.sign * h))
        spans = Spans(self.t, t_next, self.x)
        size = spans.host[2] if self.forwards else spans.host[2].abs()
        if self._check(size):
            return
        self._complete_first()
        calls = self.f.calls
        trial = self.stepper.step(self.f, cast(Any, spans), self.x, self.memory, self.first, error=True)
        self.cost = self.f.calls - calls
        self.rounds += 1
        with torch.no_grad():
            weight = scale(self.x.detach(), self.rtol, self.atol, trial.x_next.detach())
            error = self.error = on_host(self.stepper.error_ratio(trial.error, weight, self.norm))
        unsolved = trial.unsolved
        if unsolved is not None:
            error = self.error = torch.where(unsolved > 0, unsolved.clamp(min=UNSOLVED), error)
        worst = float(error.max())
        ok = None if worst <= 1 else self._acceptable(error, h)
        if unsolved is not None and ok is not None:
            ok &= unsolved == 0
        factor = factors(self.controller, [error, *self.past], self.order)
        if ok is not None:
            factor = torch.where(ok, factor, retries(self.controller, error, self.order))
            if unsolved is not None:
                factor = torch.where((unsolved > 0) & unsolved.isfinite(), UNSOLVED_SHRINK, factor)
            self.rejected.append(self.samples[~ok])
            self._note_nonfinite(worst, trial, size)
            self._note_unsolved(unsolved, size)
        elif self.broken:
            self.broken = {}
        if self.past:
            self._remember(error, ok)
        self.h = size * factor
        landed = lands if ok is None else lands & ok
        landing = bool(landed.any())
        if landing:
            self.h = torch.where(landed, torch.maximum(h, self.h), self.h)
        if ok is None or bool(ok.any()):
            self._accept(trial, ok, landed if landing else None, size)
        else:
            self.first, self.known, self.uses_first = trial.first, None, trial.first is not None
        if self.broken:
            self._stop_broken()

    def _acceptable(self, error: Tensor, h: Tensor) -> Tensor | None:
        """Which steps are accepted; None if all are."""
        ok = error <= 1
        if self.scheme.h_min > 0:
            over = (h <= self.scheme.h_min) & (error > 1) & error.isfinite()
            self.forced.append(self.samples[over])
            ok = ok | over
        return None if bool(ok.all()) else ok

    def _remember(self, error: Tensor, ok: Tensor | None) -> None:
        """The errors of the last accepted steps."""
        newest, before = [error.clamp(min=LEAST_ERROR), *self.past], self.past
        self.past = newest[:-1] if ok is None else [torch.where(ok, a, b) for a, b in zip(newest, before, strict=False)]

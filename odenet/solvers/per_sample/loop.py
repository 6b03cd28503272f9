"""The loop in which every sample has its own step; samples that are done leave the evaluated batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from odenet.errors import NonFiniteFunctionError, NonFiniteStateError
from odenet.solvers.control import LEAST_ERROR, STRETCH, scale
from odenet.solvers.per_sample.control import factors, first_steps, norm_each, on_host, retries, rms_each
from odenet.solvers.per_sample.events import SampleWatcher
from odenet.solvers.per_sample.failures import Fallible, Watch
from odenet.solvers.per_sample.hit import SampleHit
from odenet.solvers.per_sample.outputs import Dense, Interior, Step, Take
from odenet.solvers.per_sample.probe import check_samples
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.solution import SampleSolution
from odenet.solvers.per_sample.spans import Spans
from odenet.solvers.stepper import Memory, Trial


def integrate_samples(problem: SampleProblem, watch: Watch | None = None) -> SampleSolution:
    """Walk every sample of a batch with its own steps.

    Runs on the tape if gradients are enabled. Step sizes are constants of the gradient.

    Args:
        problem: what to solve.
        watch: called with every round of accepted steps, and with what was taken from them.

    Raises:
        SolveError: the solve of a sample broke down, and `on_failure="raise"`.
    """
    walk = Walk(problem, watch)
    with problem.field.consistency.forward():
        walk.begin()
        while len(walk.samples):
            walk.round()
    return walk.solution()


class Walk(Fallible):
    """Rounds in which every sample that is on its way tries one step."""

    def __init__(self, problem: SampleProblem, watch: Watch | None):
        super().__init__(problem, watch)
        scheme = problem.scheme
        assert self.stepper.error_order is not None
        self.order, self.controller = self.stepper.error_order, scheme.step_controller
        self.norm = rms_each if scheme.norm is None else norm_each(scheme.norm)
        self.watcher = SampleWatcher(problem.events, problem.begins_with) if problem.events else None
        self.dense = Dense(self.stepper, problem.sign, problem.x0, problem.begin) if problem.dense else None
        self.hits: list[tuple[SampleHit, int]] = []
        self.bounded = scheme.h_min > 0 or scheme.h_max < math.inf
        self.forwards = bool((problem.sign > 0).all())
        self.entries = len(self.each.history)
        self.rejected: list[Tensor] = []
        self.forced: list[Tensor] = []

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
            self.h = first_steps(self.f, self.t, end, self.x, self.first, self.order, self.rtol, self.atol, self.norm)
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
        worst = float(error.max())
        ok = None if worst <= 1 else self._acceptable(error, h)
        factor = factors(self.controller, [error, *self.past], self.order)
        if ok is not None:
            if self.controller.exponents != (1, 0, 0) or not math.isfinite(worst):  # else the two are one
                factor = torch.where(ok, factor, retries(self.controller, error, self.order))
            self.rejected.append(self.samples[~ok])
            self._note_nonfinite(worst, trial, size)
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

    def _accept(self, trial: Trial, ok: Tensor | None, landed: Tensor | None, size: Tensor) -> None:
        """Go to the ends of accepted steps: of all, or of those in `ok`; those in `landed` are where they had to be."""
        spans: Any = trial.span
        t_next: Tensor = spans.host[1]
        rows = None if ok is None else ok.nonzero()[:, 0]
        samples = self.samples if rows is None else self.samples[rows]
        self.each.history.append((samples, size if rows is None else size[rows]))
        gone = None
        if landed is not None:
            self.segment = self.segment + landed
            gone = landed & (self.segment == self.table.count[self.samples])
        taken: Step | None = None
        if rows is not None and self.broken and torch.is_grad_enabled():
            trial, taken = self._again(trial, rows)
        if self._wanted(samples, t_next if rows is None else t_next[rows]):
            taken = taken or self._step(trial, rows)
            gone = self._look(taken, rows, gone)
        elif self.outputs.only_ends and gone is not None:
            self.outputs.ends(self.samples[gone], trial.x_next.index_select(0, self._device(gone.nonzero()[:, 0])))
        self._move(trial, ok, rows, taken)
        self.t = t_next if ok is None else torch.where(ok, t_next, self.t)
        if self.memory.tensors:
            self.fresh = torch.zeros_like(self.fresh) if ok is None else self.fresh & ~ok
        if gone is not None and bool(gone.any()):
            landed = None if landed is None else landed[~gone]
            self._keep(~gone)
        if landed is not None and bool(landed.any()):
            self.end = self.table.end[self.samples, self.segment]
            new = landed & self.table.fresh[self.samples, self.segment]
            self.f = self.field.on(self.samples, self.segment)
            if bool(new.any()):
                self._begin_pieces(new.nonzero()[:, 0])

    def _wanted(self, samples: Tensor, t_next: Tensor) -> bool:
        """Whether anybody looks at these accepted steps."""
        if self.watch or self.watcher or self.dense:
            return True
        return not self.outputs.only_ends and bool(self.outputs.due(samples, t_next).any())

    def _step(self, trial: Trial, rows: Tensor | None) -> Step:
        """The accepted ones among tried steps."""
        if rows is None:
            return Step(self.f, trial, self.fresh)
        return Step(self.f.select(rows), trial.rows(rows), self.fresh[rows])

    def _again(self, trial: Trial, rows: Tensor) -> tuple[Trial, Step]:
        """The accepted steps without the others, whose NaN or infinity must not come near the tape."""
        f, index, part = self.f.select(rows), self._device(rows), trial.rows(rows)
        step = self.stepper.step(f, part.span, part.x, part.given, part.first, error=True)
        put = lambda old, new: old.index_copy(0, index, new)  # noqa: E731
        pairs = zip(self.memory.tensors, step.memory.tensors, strict=True)
        whole = replace(
            trial,
            x_next=put(self.x, step.x_next),
            end=None if step.end is None or trial.first is None else put(trial.first, step.end),
            memory=Memory(tuple(put(old, new) for old, new in pairs)),
        )
        return whole, Step(f, step, self.fresh[rows])

    def _look(self, step: Step, rows: Tensor | None, gone: Tensor | None) -> Tensor | None:
        """Take what is wanted from accepted steps; which of all rows are gone after them."""
        hits = [] if self.watcher is None else self.watcher.hits(self.stepper, step)
        until = step.spans.host[1].clone()
        ended = torch.zeros(len(until), dtype=torch.bool)
        for hit in hits:
            if self.problem.events[hit.event].terminal:
                until[hit.row], ended[hit.row] = hit.t, True
                self.status[hit.sample], self.ended[hit.sample] = "event", hit.t
        takes = []
        if not self.outputs.only_ends:
            takes += self.outputs.pass_over(self.stepper, step, until)
        takes += self._take_events(step, hits)
        if self.dense is not None:
            self.dense.add(step, until)
        if self.outputs.only_ends and gone is not None:
            finished = (gone if rows is None else gone[rows]) & ~ended
            at = finished.nonzero()[:, 0]
            x = step.trial.x_next.index_select(0, self._device(at))
            takes.append(Take(at, None, self.outputs.ends(step.f.samples[at], x)))
        if self.watch is not None:
            self.watch(step, takes)
        if not hits:
            return gone
        out = torch.zeros_like(self.samples, dtype=torch.bool) if gone is None else gone.clone()
        out[ended if rows is None else rows[ended]] = True
        return out

    def _take_events(self, step: Step, hits: Sequence[SampleHit]) -> list[Take]:
        """The states at events."""
        takes, left, end = [], list(hits), step.spans.host[1]
        interior: Interior | None = None
        while left:
            now = [hit for n, hit in enumerate(left) if n == 0 or left[n - 1].row != hit.row]
            left = [hit for hit in left if hit not in now]
            for at_end in (True, False):
                group = [hit for hit in now if (hit.t == float(end[hit.row])) == at_end]
                if not group:
                    continue
                rows, t = torch.tensor([h.row for h in group]), torch.tensor([h.t for h in group], dtype=torch.float64)
                if at_end:
                    x = step.trial.x_next.index_select(0, self._device(rows))
                else:
                    interior = interior or Interior(self.stepper, step, rows)
                    x = interior.at(rows, t)
                samples = torch.tensor([hit.sample for hit in group])
                last = torch.tensor([self._ends(hit) for hit in group])
                first = self.outputs.event(x, samples, last)
                takes.append(Take(rows, None if at_end else t, first))
                self.hits += [(hit, first + n) for n, hit in enumerate(group)]
        if interior is not None:
            interior.hand_over(step)
        return takes

    def _ends(self, hit: SampleHit) -> bool:
        return self.problem.events[hit.event].terminal and not self.problem.goes_on(hit)

    def solution(self) -> SampleSolution:
        """The answer, when no sample is left."""
        self.field.settle()
        each, stats = self.each, self.problem.stats
        for counts, happened in (
            (each.accepted, [samples for samples, _ in each.history[self.entries :]]),
            (each.rejected, self.rejected),
            (each.forced, self.forced),
        ):
            if happened:
                counts += torch.bincount(torch.cat(happened), minlength=len(counts))
        for name in ("accepted", "rejected", "forced"):
            setattr(stats, name, int(getattr(each, name).sum()))
        each.evaluated = int(each.nfe.sum())
        values = torch.cat(self.outputs.values) if self.outputs.values else self.problem.x0
        return SampleSolution(
            self.problem, self.outputs, values, self.ended, self.status, self.errors, self.dense, self.hits
        )

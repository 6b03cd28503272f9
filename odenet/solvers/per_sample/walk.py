"""What every walk of samples does with accepted steps: who looks at them, and how each sample goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odenet.solvers.per_sample.events import SampleWatcher
from odenet.solvers.per_sample.failures import Fallible, Watch
from odenet.solvers.per_sample.hit import SampleHit
from odenet.solvers.per_sample.outputs import Dense, Interior, Step, Take
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.rows import put
from odenet.solvers.per_sample.solution import SampleSolution
from odenet.solvers.stepper import Memory, Trial


class Walk(Fallible):
    """Rounds in which every sample that is on its way tries one step."""

    def __init__(self, problem: SampleProblem, watch: Watch | None):
        super().__init__(problem, watch)
        self.watcher = SampleWatcher(problem.events, problem.begins_with) if problem.events else None
        self.dense = Dense(self.stepper, problem.sign, problem.x0, problem.begin) if problem.dense else None
        self.hits: list[tuple[SampleHit, int]] = []
        self.entries = len(self.each.history)
        self.rejected: list[Tensor] = []
        self.forced: list[Tensor] = []

    def begin(self) -> None:
        """What has to be known before the first step."""
        raise NotImplementedError

    def round(self) -> None:
        """Every sample tries one step."""
        raise NotImplementedError

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
        if rows is not None and self.broken and trial.x_next.requires_grad:
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
        index, part = self._device(rows), trial.rows(rows)
        first = None if self.first is None else part.first
        f = self.f.select(rows, again=True)
        step = self.stepper.step(f, part.span, part.x, part.given, first, error=self.scheme.adaptive)
        tensors: Any = put(self.memory.tensors, index, step.memory.tensors, len(self.samples))
        whole = replace(
            trial,
            x_next=self.x.index_copy(0, index, step.x_next),
            end=None if step.end is None or trial.first is None else trial.first.index_copy(0, index, step.end),
            memory=Memory(tuple(tensors), step.memory.times),
        )
        return whole, Step(self.f.select(rows), step, self.fresh[rows])

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
                    assert self.watcher is not None and self.watcher.interior is not None
                    interior = self.watcher.interior
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
        each.evaluated = each.padded = int(each.nfe.sum()) + self.field.again
        values = torch.cat(self.outputs.values) if self.outputs.values else self.problem.x0
        return SampleSolution(
            self.problem, self.outputs, values, self.ended, self.status, self.errors, self.dense, self.hits
        )

"""The samples that are on their way: what each needs to know, and how they go on and leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odenet.solvers.per_sample.outputs import Step
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.rows import merged
from odenet.solvers.stepper import NOTHING, Memory, Trial


class Walkers:
    """The samples that are still on their way, and what each needs to know.

    Vectors of numbers, one for each of these samples, are on the host: times and sizes in float64, `samples`,
    `segment` and counts as integers.

    Args:
        problem: what is solved.

    Attributes:
        h: the size that each would like its next step to have, positive.
        end: where each has to land next.
        error: scaled error of the last step that each tried.
        past: those of the accepted steps before, as the controller remembers them.
        first: F(t, x), for the rows in `known`, or for all if that is None; None if it is not known.
        uses_first: whether the method's steps start with F(t, x).
        fresh: for which rows the method's memory was made where they are.
        before: where the steps before began, oldest first, (rows, n), for a method that looks back; NaN where none did.
        f: F for these samples.
    """

    def __init__(self, problem: SampleProblem):
        self.problem, self.scheme = problem, problem.scheme
        self.field, self.table, self.stepper = problem.field, problem.field.timetable, problem.stepper
        scheme, batch = problem.scheme, problem.x0.shape[0]
        controller = scheme.step_controller
        self.samples = problem.walking
        whole, x0 = len(self.samples) == batch, problem.x0
        self.x = x0 if whole else x0.index_select(0, self.samples.to(x0.device))
        rtol, atol = scheme.tolerances
        self.rtol, self.atol = self._own(rtol), self._own(atol)
        self.t, self.sign = problem.begin[self.samples], problem.sign[self.samples]
        self.segment = problem.segments[self.samples]
        self.end = self.table.end[self.samples, self.segment]
        self.h = torch.full_like(self.t, scheme.first_step or 0.0)
        largest = torch.maximum(problem.t0.abs(), problem.t1.abs())[self.samples]
        self.resolution = 16 * torch.finfo(torch.float64).eps * largest
        self.error: Tensor | None = None
        memory = 2 if controller.exponents[2] else int(controller.exponents[1] != 0)
        self.past = [torch.ones_like(self.t) for _ in range(memory)]
        self.first: Tensor | None = None
        self.known: Tensor | None = None
        self.uses_first = True
        self.memory = NOTHING
        self.fresh = torch.ones_like(self.samples, dtype=torch.bool)
        self.before: Tensor | None = None
        self.f = self.field.on(self.samples, self.segment)

    def _move(self, trial: Trial, ok: Tensor | None, rows: Tensor | None, taken: Step | None) -> None:
        """State, memory and slope at the ends of the accepted steps, and where they were for the others."""
        self.uses_first = trial.first is not None
        if ok is None or rows is None:
            self.x, self.memory, self.first = trial.x_next, trial.memory, trial.end
            self.known = None if taken is None or trial.end is None else taken.end_known
            return
        mask = self._device(ok).reshape(-1, *(1,) * (self.x.dim() - 1))
        self.x = torch.where(mask, trial.x_next, self.x)
        tensors = merged(self._device(ok), trial.memory.tensors, self.memory.tensors)
        self.memory = Memory(tensors, trial.memory.times)
        if trial.end is not None and trial.first is not None:
            self.first, self.known = torch.where(mask, trial.end, trial.first), None
            return
        self.first, self.known = trial.first, ~ok
        if taken is not None and taken.trial.end is not None and trial.first is not None:
            self.first = trial.first.index_copy(0, self._device(rows), taken.trial.end)
            self.known[rows] = True if taken.end_known is None else taken.end_known

    def _begin_pieces(self, rows: Tensor) -> None:
        """Slopes and memory of samples on whose new piece of depth F is another function."""
        if self.stepper.lasting and not self.uses_first:
            return
        f, index = self.field.on(self.samples[rows], self.segment[rows]), self._device(rows)
        t, x = self._times(self.t[rows]), self.x.index_select(0, index)
        k = f(t, x) if self.uses_first else None
        if not self.stepper.lasting:
            memory = self.stepper.start(f, t, x, k)  # pyright: ignore[reportArgumentType]
            pairs = zip(self.memory.tensors, memory.tensors, strict=True)
            self.memory = Memory(tuple(old.index_copy(0, index, new) for old, new in pairs))
            self.fresh = self.fresh.index_put((rows,), torch.tensor(True))
        if k is None:
            return
        if self.first is None:
            self.first, self.known = torch.zeros_like(self.x), torch.zeros_like(self.fresh)
        self.first = self.first.index_copy(0, index, k)
        if self.known is not None:
            self.known[rows] = True

    def _complete_first(self) -> None:
        """Evaluate the slopes at the start that are not known, if others are."""
        if self.first is None or self.known is None:
            return
        if bool(self.known.any()):
            rows = (~self.known).nonzero()[:, 0]
            if len(rows):
                index = self._device(rows)
                k = self.f.select(rows)(self._times(self.t[rows]), self.x.index_select(0, index))
                self.first = self.first.index_copy(0, index, k)
        else:
            self.first = None
        self.known = None

    def _keep(self, keep: Tensor) -> None:
        """Go on with some of the samples only."""
        rows = keep.nonzero()[:, 0]
        index = self._device(rows)
        for name in ("samples", "t", "sign", "segment", "end", "h", "resolution", "error", "fresh", "known", "before"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.index_select(0, rows))
        self.past = [part.index_select(0, rows) for part in self.past]
        self.x = self.x.index_select(0, index)
        self.first = None if self.first is None else self.first.index_select(0, index)
        tensors = (part.index_select(0, index) for part in self.memory.tensors)
        self.memory = Memory(tuple(tensors), self.memory.times)
        rtol, atol = self.scheme.tolerances
        self.rtol, self.atol = self._own(rtol), self._own(atol)
        self.f = self.field.on(self.samples, self.segment)

    def _own(self, tolerance: Any) -> Any:
        """A tolerance for the samples that are on their way."""
        x0 = self.problem.x0
        if not isinstance(tolerance, Tensor) or tolerance.dim() < x0.dim() or len(self.samples) == len(x0):
            return tolerance
        own = tolerance.dim() == x0.dim() and len(tolerance) == len(x0)
        return tolerance.index_select(0, self.samples.to(tolerance.device)) if own else tolerance

    def _times(self, t: Tensor) -> Tensor:
        """Host times on the state's device, as steppers see them."""
        return t.to(self.x.device, torch.float32 if self.x.device.type == "mps" else torch.float64)

    def _device(self, rows: Tensor) -> Tensor:
        return rows.to(self.x.device, non_blocking=True)

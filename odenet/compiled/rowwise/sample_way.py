"""Where each sample has to land, and its given steps, as C++ is told of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.compiled.rowwise.sample_record import Samples
from odenet.solvers.per_sample import SampleProblem


@dataclass
class Way:
    """The ways of all samples as segments, at whose ends a step has to end (`Timetable`).

    Attributes:
        problem: whose.
        until: for each piece of weights the segment after the last one that lies on it, (batch,).
        whole: whether each way is one segment.
        first_end: end of the first piece of depth, (batch,).
        landings: ends of the segments, (batch, segments).
        anew: whether a piece of depth begins with a segment, (batch, segments).
        shown: what F is shown at the ends of its pieces where it jumps, (4, batch, segments), or None.
    """

    problem: SampleProblem
    until: list[Tensor]
    whole: bool
    first_end: Tensor
    landings: Tensor
    anew: Tensor
    shown: Tensor | None

    @classmethod
    def of(cls, problem: SampleProblem) -> Way:
        """That of a problem."""
        table, pieces = problem.field.timetable, problem.weights.pieces
        segments = table.end.shape[1]
        shown = None if table.shown is None else torch.stack([part.contiguous() for part in table.shown])
        if segments == 1:
            t1 = problem.t1
            return cls(problem, [table.count], shown is None, t1, t1, table.fresh, shown)
        within = torch.arange(segments) < table.count[:, None]
        until = [((table.weights <= piece) & within).sum(1) for piece in range(pieces)]
        anew, first_end = table.fresh.contiguous(), table.piece_end[:, 0].contiguous()
        return cls(problem, until, False, first_end, table.end.contiguous(), anew, shown)

    def show(self, call: Samples) -> None:
        """Tell C++ where it lies."""
        problem = self.problem
        call.begin, call.end, call.first_end = (x.data_ptr() for x in (problem.t0, problem.t1, self.first_end))
        call.landings, call.anew, call.segments = self.landings.data_ptr(), self.anew.data_ptr(), self._segments
        if self.shown is not None:
            call.shown = self.shown.data_ptr()

    @property
    def _segments(self) -> int:
        return self.landings.shape[1] if self.landings.dim() > 1 else 1


@dataclass
class Given:
    """Given steps.

    Attributes:
        times: ends of the steps, (grids, steps + 1).
        which: the grid of each sample, (batch,).
        sizes: of all steps of each grid, (grids,), or None.
    """

    times: Tensor
    which: Tensor
    sizes: Tensor | None

    @classmethod
    def of(cls, problem: SampleProblem, order: Tensor) -> Given:
        """Those of a problem; of samples in an order that is changed, so that those with the most come first."""
        grids = problem.grids
        assert grids is not None
        times, which = grids.times.contiguous(), grids.index.contiguous()
        counts = (times != times[:, -1:]).sum(1)[which]
        order.copy_(order[counts[order].argsort(descending=True, stable=True)])
        return cls(times, which, grids.h)

    def show(self, call: Samples) -> None:
        """Tell C++ where they lie."""
        call.grid, call.which, call.width = self.times.data_ptr(), self.which.data_ptr(), self.times.shape[1]
        if self.sizes is not None:
            call.grid_size = self.sizes.data_ptr()

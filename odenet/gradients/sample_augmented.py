"""The vector field of the continuous adjoint, sample by sample: state and cotangent as one packed state."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.inputs import Inputs, vjp
from odenet.solvers.per_sample import SampleProblem
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.timetable import Timetable


class AugmentedSamples:
    """d/dt [x, a] = [F, -aᵀ ∂F/∂x] for any of the samples, of states (rows, 2n).

    Args:
        problem: whose F it is.
        inputs: the tensors that F uses.
        timetable: of the way back.
        segments: the forward segment of each of its segments, (batch, segments).
    """

    def __init__(self, problem: SampleProblem, inputs: Inputs, timetable: Timetable, segments: Tensor):
        self.problem, self.inputs, self.timetable, self.forward_segments = problem, inputs, timetable, segments
        self.forward = problem.field
        self.device, self.time_dtype, self.batch = problem.field.device, problem.field.time_dtype, problem.field.batch
        self.consistency, self.again = SimpleNamespace(forward=contextlib.nullcontext), 0

    def on(self, samples: Tensor, segments: Tensor) -> AugmentedRows:
        """The field for some of the samples on segments of the way back."""
        return AugmentedRows(self, samples, segments)

    def settle(self) -> None:
        """Bring the counts of F up to date."""
        self.forward.settle()

    def pack(self, x: Tensor, a: Tensor) -> Tensor:
        """(rows, 2n) from a state and its cotangent."""
        return torch.cat([x.reshape(len(x), -1), a.reshape(len(a), -1)], 1)

    def unpack(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """State and cotangent."""
        x, a = (part.reshape(len(z), *self.problem.x0.shape[1:]) for part in z.chunk(2, 1))
        return x, a

    def tolerance(self, value: Any) -> Any:
        """A tolerance for packed states, from a number or a tensor that broadcasts to x."""
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value if not isinstance(value, Tensor) else float(value)
        flat = value.expand(self.problem.x0.shape).reshape(self.batch, -1)
        return torch.cat([flat, flat], 1)


class AugmentedRows:
    """The field for some of the samples.

    Args:
        field: the field.
        samples: which, increasing, on the host.
        segments: the segment of its way back that each is on.
    """

    def __init__(self, field: AugmentedSamples, samples: Tensor, segments: Tensor):
        self.field, self.samples, self.segments, self.calls = field, samples, segments, 0
        self.f = self.again()

    def again(self) -> Rows:
        """F itself for these samples; with gradients enabled their arguments are cut to the rows on the tape."""
        return self.field.forward.on(self.samples, self.field.forward_segments[self.samples, self.segments])

    def select(self, rows: Tensor) -> AugmentedRows:
        """The field for some of these samples; `rows` is on the host."""
        return AugmentedRows(self.field, self.samples[rows], self.segments[rows])

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        """[F, -aᵀ ∂F/∂x]."""
        self.calls += 1
        x, a = self.field.unpack(z.detach())
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            k = self.f(t, leaf)
        self.field.problem.stats.vjps += 1
        slope = None
        if k.requires_grad:
            inputs = self.field.inputs
            inputs.check(self.f.pieces[0], [k], leaf, *(t for p in self.f.pieces for t in inputs.piece(p)))
            (slope,) = vjp([k], [leaf], [-a], keep=True)
        return self.field.pack(k.detach(), torch.zeros_like(x) if slope is None else slope)


def segments_back(
    table: Timetable, sign: Tensor, t: Tensor, until: Tensor, samples: Tensor
) -> tuple[Timetable, Tensor]:
    """The way of samples from t back to `until`, ending steps where those of the way forward had to end.

    Args:
        table: of the way forward.
        sign: its direction.
        t: where the way back begins, (batch,) like the others.
        until: where it ends.
        samples: which samples go it.

    Returns:
        The timetable, and the forward segment on which each of its segments lies.
    """
    towards = sign[:, None]
    last = ((table.end * towards) < t[:, None] * towards).sum(1)
    last = torch.minimum(last, (table.count - 1).clamp(min=0))
    lowest = ((table.end * towards) <= until[:, None] * towards).sum(1)
    going = torch.zeros_like(table.count, dtype=torch.bool)
    going[samples] = True
    count = torch.where(going, last - lowest + 1, 0).clamp(min=0)
    longest = max(1, int(count.max()) if len(count) else 1)
    forward = (last[:, None] - torch.arange(longest)).clamp(min=0)
    forward = torch.maximum(forward, lowest.clamp(max=table.end.shape[1] - 1)[:, None])
    starts = torch.cat([table.start[:, None], table.end[:, :-1]], 1)
    number = torch.arange(longest)[None]
    end = torch.where(number + 1 >= count[:, None], until[:, None], starts.gather(1, forward))
    weights = table.weights.gather(1, forward)
    left = (forward + 1).clamp(max=table.end.shape[1] - 1)
    fresh = table.fresh.gather(1, left) & (number > 0)
    return Timetable(t, count, end, end, weights, fresh, None), forward

"""What C++ is told of samples with their own steps, and what it leaves: where each is, and the accepted steps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from odenet.compiled.per_sample.walk import Phase
from odenet.compiled.rowwise.field import Use

F64 = torch.float64
FIELDS = ("t", "h", "error", "the error before", "bad", "tries", "accepted", "forced", "last", "upcoming", "segment")
TRIES, ACCEPTED, FORCED, LAST, UPCOMING, SEGMENT = range(5, 11)
GOES_ON, BEGINS, RENEWED = range(3)

NUMBERS = ("rtol", "atol", "h_min", "h_max", "max_steps", "first_step")
COUNTS = (
    "batch", "moving", "threads", "inputs", "outputs", "fresh", "keep", "capacity", "base", "used", "failed", "padded",
    "width", "segments", "first",
)  # fmt: skip
PLACES = (
    "given", "begin", "end", "first_end", "landings", "anew", "shown", "until", "x", "slope", "at", "order", "times",
    "at_times", "whose", "before", "tried", "segment", "ts", "ends", "sizes", "xs", "grid",
    "grid_size", "which", "work", "a", "seeds", "inner", "gradients",
)  # fmt: skip


class Samples(ctypes.Structure):
    """`Samples` of samples.h."""

    _fields_ = [
        *((name, ctypes.c_double) for name in NUMBERS),
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in PLACES),
    ]


@dataclass
class Record:
    """Accepted steps in the order in which they were made; those of a sample in their order.

    Attributes:
        steps: of each its sample, the step of that sample before it or -1, which try it was, and on which segment of
            the sample's way if there are several, (4, capacity).
        times: where it begins and ends, and its signed size, (3, capacity).
        inner: whether times of the answer lie inside a given step, (capacity,) or none.
        xs: the states at the starts, (capacity, ...), or none.
        count: how many there are.
    """

    steps: Tensor
    times: Tensor
    inner: Tensor
    xs: Tensor
    count: int

    @classmethod
    def joined(cls, parts: Sequence[Record]) -> Record:
        """One record of several."""
        if len(parts) == 1:
            return parts[0]
        steps, times = (torch.cat([getattr(p, name)[:, : p.count] for p in parts], 1) for name in ("steps", "times"))
        inner, xs = (torch.cat([getattr(p, name)[: p.count] for p in parts]) for name in ("inner", "xs"))
        return cls(steps, times, inner, xs, sum(p.count for p in parts))

    def show(self, call: Samples) -> None:
        """Tell C++ where it lies."""
        call.capacity = self.steps.shape[1]
        call.whose, call.before, call.tried, call.segment = _rows(self.steps)
        call.ts, call.ends, call.sizes = _rows(self.times)
        call.inner, call.xs = self.inner.data_ptr(), self.xs.data_ptr()


class Stretch(NamedTuple):
    """The steps on a piece of weights.

    Attributes:
        use: F there.
        first: the first step of the record that lies there.
    """

    use: Use
    first: int


@dataclass
class Walked:
    """What a row-wise solve of samples with their own steps did.

    Attributes:
        record: the accepted steps.
        at: numbers of each sample where it ended, those of `FIELDS`, (fields, batch).
        ends: the last state of each sample, (batch, ...).
        times: times of the answer, (times, batch), if some lie inside a sample's interval; else none.
        outputs: the states there.
        pieces: of weights, in the order in which they were walked.
    """

    record: Record
    at: Tensor
    ends: Tensor
    times: Tensor
    outputs: Tensor
    pieces: list[Stretch]

    @property
    def uses(self) -> list[Use]:
        """What F was made of on each piece of weights."""
        return [piece.use for piece in self.pieces]

    @cached_property
    def phases(self) -> list[Phase]:
        """The record as rounds in which every sample makes a step."""
        whose = self.record.steps[0, : self.record.count]
        accepted = self.at[ACCEPTED].long()
        most, order = int(accepted.max()), whose.argsort(stable=True)
        place = torch.arange(len(whose)) - (accepted.cumsum(0) - accepted)[whose[order]]
        ends = torch.zeros(2, most, len(accepted), dtype=F64)
        ends[:, place, whose[order]] = self.record.times[:2, order]
        xs = self.ends.new_zeros(most, *self.ends.shape)
        xs[place, whose[order]] = self.record.xs[order]
        segments = None
        if int(self.at[SEGMENT].max()) > 1:
            segments = torch.zeros(most, len(accepted), dtype=torch.long)
            segments[place, whose[order]] = self.record.steps[3, order]
        return [Phase(torch.arange(len(accepted)), accepted, most, (ends, xs), segments)]


def _rows(x: Tensor) -> tuple[int, ...]:
    """Where the rows of a matrix begin."""
    return tuple(x.data_ptr() + i * x.stride(0) * x.element_size() for i in range(len(x)))

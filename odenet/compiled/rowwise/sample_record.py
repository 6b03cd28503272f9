"""What C++ is told of samples with their own steps, and what it leaves: where each is, and the accepted steps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from odenet.compiled.per_sample.walk import Phase

F64 = torch.float64
FIELDS = ("t", "h", "error", "the error before", "bad", "tries", "accepted", "forced", "last", "upcoming")
TRIES, ACCEPTED, FORCED, LAST, UPCOMING = range(5, 10)

NUMBERS = ("rtol", "atol", "h_min", "h_max", "max_steps", "first_step")
COUNTS = (
    "batch", "moving", "threads", "inputs", "outputs", "fresh", "keep", "capacity", "base", "used", "failed", "padded",
    "width",
)  # fmt: skip
PLACES = (
    "given", "begin", "end", "x", "slope", "at", "order", "times", "at_times", "whose", "before", "tried", "ts", "ends",
    "sizes", "xs", "grid", "grid_size", "which", "work", "a", "seeds", "inner", "gradients",
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
        steps: of each its sample, the step of that sample before it or -1, and which try it was, (3, capacity).
        times: where it begins and ends, and its signed size, (3, capacity).
        xs: the states at the starts, (capacity, ...), or none.
        count: how many there are.
    """

    steps: Tensor
    times: Tensor
    xs: Tensor
    count: int

    @classmethod
    def joined(cls, parts: Sequence[Record]) -> Record:
        """One record of several."""
        if len(parts) == 1:
            return parts[0]
        steps, times = (torch.cat([getattr(p, name)[:, : p.count] for p in parts], 1) for name in ("steps", "times"))
        return cls(steps, times, torch.cat([p.xs[: p.count] for p in parts]), sum(p.count for p in parts))

    def show(self, call: Samples) -> None:
        """Tell C++ where it lies."""
        call.capacity = self.steps.shape[1]
        call.whose, call.before, call.tried = _rows(self.steps)
        call.ts, call.ends, call.sizes = _rows(self.times)
        call.xs = self.xs.data_ptr()


@dataclass
class Walked:
    """What a row-wise solve of samples with their own steps did.

    Attributes:
        record: the accepted steps.
        at: numbers of each sample where it ended, those of `FIELDS`, (fields, batch).
        ends: the last state of each sample, (batch, ...).
        times: times of the answer, (times, batch), if some lie inside a sample's interval; else none.
        outputs: the states there.
    """

    record: Record
    at: Tensor
    ends: Tensor
    times: Tensor
    outputs: Tensor

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
        return [Phase(torch.arange(len(accepted)), accepted, most, (ends, xs))]


def _rows(x: Tensor) -> tuple[int, ...]:
    """Where the rows of a matrix begin."""
    return tuple(x.data_ptr() + i * x.stride(0) * x.element_size() for i in range(len(x)))

"""When each sample has to land where: its own interval, cut by knots of the weights, jumps and stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.solvers.grid import landings, pieces_of_depth


@dataclass
class Timetable:
    """The way of each sample as segments, at whose ends a step has to end. All on the host, times in float64.

    Attributes:
        start: where it begins, shape (batch,).
        count: number of segments, shape (batch,); 0 where t0 = t1.
        end: ends of the segments, shape (batch, segments); rows that have fewer repeat their last.
        piece_end: end of the piece of depth that a segment lies on, shape (batch, segments).
        weights: the piece of weights there, shape (batch, segments).
        fresh: whether a piece of depth begins with the segment, shape (batch, segments).
        shown: None, or where F is discontinuous at ends of pieces: (end, what F is shown there) for the first and the
            last time of the piece, each of shape (batch, segments).
    """

    start: Tensor
    count: Tensor
    end: Tensor
    piece_end: Tensor
    weights: Tensor
    fresh: Tensor
    shown: tuple[Tensor, Tensor, Tensor, Tensor] | None

    @classmethod
    def of(
        cls,
        t0: Tensor,
        t1: Tensor,
        knots: Sequence[float],
        jumps: Sequence[float],
        stops: Sequence[float],
        dtype: torch.dtype,
    ) -> Timetable:
        """From the interval of each sample.

        Args:
            t0: starts, shape (batch,).
            t1: ends, shape (batch,).
            knots: interior knots of the weights, as fractions of the interval.
            jumps: times at which F is discontinuous.
            stops: times at which a step has to end.
            dtype: of the times that F is shown.
        """
        if len(t0) and bool((t0 == t0[0]).all()) and bool((t1 == t1[0]).all()):
            intervals, index = torch.stack([t0[:1], t1[:1]], 1), torch.zeros(len(t0), dtype=torch.long)
        else:
            intervals, index = torch.unique(torch.stack([t0, t1], 1), dim=0, return_inverse=True)
        ways = [_segments(a, b, knots, jumps, stops) for a, b in intervals.tolist()]
        longest = max((len(way) for way in ways), default=0) or 1
        rows = [[*way, *[way[-1] if way else (0.0,) * 5] * (longest - len(way))] for way in ways]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, longest, 5)[index]
        end, first, last, weights, fresh = table.unbind(2)
        shown = None
        if jumps:
            cuts = torch.tensor(jumps, dtype=torch.float64)
            shown = (first, _inside(first, last, cuts, dtype), last, _inside(last, first, cuts, dtype))
        count = torch.tensor([len(way) for way in ways], dtype=torch.long)[index]
        return cls(t0, count, end, last, weights.long(), fresh.bool(), shown)


def _segments(
    t0: float, t1: float, knots: Sequence[float], jumps: Sequence[float], stops: Sequence[float]
) -> list[tuple[float, ...]]:
    """(end, start of the piece, end of the piece, piece of weights, whether a piece begins) for each segment."""
    if t0 == t1:
        return []
    pieces = pieces_of_depth(t0, t1, knots, jumps)
    return [
        (end, piece.start, piece.end, piece.weights, number == 0)
        for piece, ends in zip(pieces, landings(pieces, stops), strict=True)
        for number, end in enumerate(ends)
    ]


def _inside(t: Tensor, towards: Tensor, jumps: Tensor, dtype: torch.dtype) -> Tensor:
    """What F is shown at t: the next time inside the piece where it jumps there, as the state's precision has it."""
    near = torch.nextafter(t.to(dtype), towards.to(dtype)).to(t.dtype)
    return torch.where(torch.isin(t, jumps), near, t)

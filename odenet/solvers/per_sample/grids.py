"""The grids of a fixed-step solve, one for each sample."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.grid import RESOLUTION, check_grid, pieces_of_depth, spans_of, stepped_grid, uniform_grid
from odenet.solvers.scheme import Scheme


class Grids:
    """Ends of the steps of each sample; samples with the same interval share a grid.

    Args:
        scheme: says by what the steps are fixed.
        t0: starts, (batch,), float64 on the host like all times.
        t1: ends, (batch,).
        knots: interior knots of the weights, as fractions of the interval.

    Attributes:
        times: t0 and the ends of the steps, (grids, steps + 1); rows that have fewer repeat their last.
        index: the grid of each sample, (batch,).
        h: signed size of all steps of each grid, (grids,), or None where they differ.

    Raises:
        InputError: a grid that does not run from t0 to t1, crosses a knot, or has more than `max_steps` steps.
    """

    def __init__(self, scheme: Scheme, t0: Tensor, t1: Tensor, knots: Sequence[float]):
        self.h: Tensor | None = None
        own: Any = scheme.grid
        cuts = bool(knots or scheme.jumps or scheme.stops)
        if isinstance(own, Tensor):
            self.index, ends = torch.arange(len(t0)), torch.stack([t0, t1], 1)
            if own.shape[1:] != t0.shape:
                raise InputError(
                    f"grid must be (steps + 1,) or (steps + 1, {len(t0)}), a column a sample, got {tuple(own.shape)}"
                )
        else:
            ends, self.index = torch.unique(torch.stack([t0, t1], 1), dim=0, return_inverse=True)
        if scheme.steps is not None:
            self.h = (ends[:, 1] - ends[:, 0]) / scheme.steps
        if scheme.steps is not None and not cuts:
            parts = torch.tensor([n / scheme.steps for n in range(scheme.steps)], dtype=torch.float64)
            self.times = torch.cat([ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * parts, ends[:, 1:]], 1)
            return
        rows = [_ends(scheme, number, a, b, knots, cuts) for number, (a, b) in enumerate(ends.tolist())]
        longest = max(map(len, rows), default=1)
        if longest - 1 > scheme.max_steps:
            raise InputError(f"that is {longest - 1} steps, more than max_steps={scheme.max_steps}; raise max_steps")
        padded = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
        self.times = torch.tensor(padded, dtype=torch.float64).reshape(-1, longest)

    def behind(self, t: Tensor, sign: Tensor) -> Tensor:
        """How many steps of each sample end up to its time t, (batch,)."""
        later = self.times[self.index, 1:] * sign[:, None] > (t * sign)[:, None]
        return (~later).sum(1)

    def back(self, samples: Tensor, t: Tensor, until: Tensor, batch: int) -> Grids:
        """The same steps backwards, for some samples from t to `until`, where the first and the last may be shorter."""
        rows: list[list[float]] = [[0.0]] * batch
        for sample, a, b in zip(samples.tolist(), t.tolist(), until.tolist(), strict=True):
            close = RESOLUTION * max(abs(a), abs(b))
            low, high = min(a, b) + close, max(a, b) - close
            inside = [s for s in self.times[self.index[sample]].unique().tolist() if low < s < high]
            rows[sample] = [a, *(inside if a < b else reversed(inside)), b]
        grids = copy.copy(self)
        longest = max(map(len, rows))
        grids.h, grids.index = None, torch.arange(batch)
        grids.times = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], dtype=torch.float64)
        return grids

    def step(self, samples: Tensor, number: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where step `number` of some samples ends if it begins at t, and its signed size."""
        grid = self.index[samples]
        t_next = self.times[grid, number + 1]
        size = t_next - t
        if self.h is not None:
            size = torch.where(t == self.times[grid, number], self.h[grid], size)
        return t_next, size


def _ends(scheme: Scheme, number: int, t0: float, t1: float, knots: Sequence[float], cuts: bool) -> list[float]:
    """t0 and the ends of the steps to t1, knots, jumps and stops among them to the last bit."""
    if t0 == t1:
        return [t0]
    pieces, h = pieces_of_depth(t0, t1, knots, scheme.jumps), None
    if scheme.steps is not None:
        times, h = uniform_grid(t0, t1, scheme.steps), (t1 - t0) / scheme.steps
    elif scheme.step_size is not None:
        times = stepped_grid(pieces, scheme.stops, scheme.step_size)
    else:
        grid: Any = scheme.grid
        column = grid[:, number].tolist() if isinstance(grid, Tensor) else grid
        times = check_grid(column, t0, t1)
    if not cuts:
        return list(times)
    return [t0, *(span.t_next for span in spans_of(tuple(times), tuple(pieces), tuple(scheme.stops), h))]

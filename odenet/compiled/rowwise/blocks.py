"""What a row-wise solve leaves: its steps, with the states in blocks of lanes, and what F was made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.compiled.record import Chunk, Walked
from odenet.compiled.rowwise.field import Use
from odenet.compiled.rowwise.library import Walk


@dataclass
class RowWalked(Walked):
    """What a row-wise solve did.

    Attributes:
        uses: what F was made of on each piece of depth.
    """

    uses: list[Use]


class KeptSteps:
    """A record of steps that is kept, with room for so many.

    Args:
        x: a state.
        capacity: steps.
        shape: of a state in blocks of lanes.
    """

    def __init__(self, x: Tensor, capacity: int, shape: tuple[int, ...]):
        self.ts, self.hs = (torch.empty(capacity + 1, dtype=torch.float64) for _ in range(2))
        self.xs = x.new_empty(capacity, *shape)

    def show(self, call: Walk) -> None:
        """Tell C++ where it lies."""
        call.ts, call.hs, call.xs = self.ts.data_ptr(), self.hs.data_ptr(), self.xs.data_ptr()

    def sizes(self, first: int, last: int) -> list[float]:
        """The sizes of some of them."""
        return self.hs[first:last].tolist()

    def chunk(self, first: int, last: int, end: float, shape: torch.Size, piece: int) -> BlockChunk:
        """Some of them, the last of which ends at `end`."""
        self.ts[last] = end
        return BlockChunk(self.ts, self.hs, self.xs, last, shape, first, piece)


class BlockChunk(Chunk):
    """A part of the accepted grid whose states lie in blocks of lanes.

    Args:
        grid: ends of the steps.
        sizes: of the steps, signed.
        blocks: states at their starts, (steps, blocks, elements, lanes).
        count: how many steps there are.
        shape: of a state.
        first: the first of them that belongs to this part.
        piece: of depth, on which they lie.
    """

    def __init__(
        self, grid: Tensor, sizes: Tensor, blocks: Tensor, count: int, shape: torch.Size, first: int, piece: int
    ):
        self.grid, self.sizes, self.blocks, self.count, self.shape = grid, sizes, blocks, count, shape
        self.first, self.piece = first, piece

    @property
    def states(self) -> Tensor:  # type: ignore[override]
        """The states, (steps, *shape)."""
        rows = self.blocks[: self.count].transpose(2, 3).flatten(1, 2)[:, : self.shape[0]]
        return rows.reshape(self.count, *self.shape)

    def passing(self, times: Tensor, count: int) -> int:
        """How many of the steps have one of `count` times inside, and not at an end."""
        if not count:
            return 0
        ends, sign = self.grid[self.first : self.count + 1], torch.sign(self.sizes[self.first])
        at, ends = times * sign, ends * sign
        step = torch.searchsorted(ends, at)  # the first end that is not before it
        within = (at > ends[0]) & (at < ends[-1])
        inner = within & (ends[step.clamp(max=len(ends) - 1)] != at)
        return len(step[inner].unique())

    def state(self, number: int) -> Tensor:
        """One of them."""
        return self.blocks[number].transpose(1, 2).flatten(0, 1)[: self.shape[0]].reshape(self.shape)

"""Where the steps of several samples go, one each: a `Span` whose numbers are tensors."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from odenet.solvers.per_sample.field import Rows


class Spans:
    """From t to t_next, each sample by itself; times on the state's device, in float64 where it has that.

    Args:
        t: where the steps begin, (rows,), float64 on the host.
        t_next: where they end.
        x: the state there, for shape, dtype and device.
        step: t_next - t, or what a uniform grid calls it.
        before: where the steps before these began, oldest first, (rows, n) on the host; NaN where there was none.
        piece: F for these samples on the pieces of depth that they go over, where that is wanted.

    Attributes:
        host: t, t_next, the size of the step, and `before` where it is given, on the host.
        h: t_next - t in the state's precision, of a shape that broadcasts against the state.
    """

    def __init__(
        self,
        t: Tensor,
        t_next: Tensor,
        x: Tensor,
        step: Tensor | None = None,
        before: Tensor | None = None,
        piece: Rows | None = None,
    ):
        self.piece = piece
        self._shape, self._dtype = (-1, *(1,) * (x.dim() - 1)), x.dtype.to_real()
        step = t_next - t if step is None else step
        self.host: tuple[Tensor, ...] = (t, t_next, step) if before is None else (t, t_next, step, before)
        if x.device.type != "cpu":
            wide = torch.float32 if x.device.type == "mps" else torch.float64
            t, t_next, step = torch.stack([t, t_next, step]).to(x.device, wide, non_blocking=True)
        self.t, self.t_next, self.step = t, t_next, step
        self.h = step.to(self._dtype).reshape(self._shape)

    @property
    def before(self) -> Tensor:
        """Where the steps before these began, (rows, n) on the host."""
        return self.host[3]

    def at(self, c: float) -> Tensor:
        """t + c h, and exactly t_next at c = 1."""
        return self.t_next if c == 1 else torch.add(self.t, self.step, alpha=c)

    def fraction(self, t: Tensor) -> Tensor:
        """Where times lie in the steps, in units of h from their starts, of h's shape."""
        return ((t - self.t) / self.step).to(self._dtype).reshape(self._shape)

    def reversed(self) -> Spans:
        """The same steps from their ends to their starts."""
        spans = copy(self)
        spans.host = self.host[1], self.host[0], -self.host[2]
        spans.t, spans.t_next, spans.step, spans.h = self.t_next, self.t, -self.step, -self.h
        return spans

    def rows(self, rows: Tensor, index: Tensor) -> Spans:
        """The spans of some of the samples: which, on the host and on the state's device."""
        spans = copy(self)
        spans.piece = None if self.piece is None else self.piece.select(rows)
        spans.host = tuple(part.index_select(0, rows) for part in self.host)
        for name in ("t", "t_next", "step", "h"):
            setattr(spans, name, getattr(self, name).index_select(0, index))
        return spans

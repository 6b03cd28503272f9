"""A walk over a given grid, a number of steps at a time and without any look at the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from odenet.compiled.captured.arithmetic import Arithmetic
from odenet.compiled.captured.field import Field, kept
from odenet.compiled.captured.replay import Replay

F64 = torch.float64
RUN = 8  # steps in a graph, where there are as many to take


class FixedWalk:
    """Steps of one method from a state of one shape, on places in memory that stay.

    Args:
        field: F.
        arithmetic: of the method.
        x0: a state.
        rows: steps of a grid, and of a record, that there is room for.
        keep: whether the states at the starts of the steps are recorded.
    """

    def __init__(self, field: Field, arithmetic: Arithmetic, x0: Tensor, rows: int, keep: bool):
        self.field, self.arithmetic, self.rows, self.keep = field, arithmetic, rows, keep
        device = x0.device
        with torch.inference_mode(False):
            self.x, self.xs = kept(x0), kept(x0, rows if keep else 0)
            self.numbers = torch.zeros(2 * rows + 1, dtype=F64, device=device)
            self.n = torch.zeros(1, dtype=torch.int64, device=device)
            self.span = torch.zeros(3, dtype=F64, device=device)
            self.c = torch.tensor(arithmetic.tableau.c[: arithmetic.tableau.used], dtype=F64, device=device)
        self._grid, self._sizes = self.numbers.split([rows + 1, rows])
        self._told: list[float] | None = None
        self._locate, self._move = arithmetic.located(), arithmetic.moved(keep)
        self.step = Replay(self._step, device, reset=self.n.zero_)
        self.run = Replay(self._run, device, self.step, self.n.zero_)

    def capture(self) -> None:
        """Make the graphs, from what was loaded; on CUDA."""
        x0 = self.x.clone()
        self.step.capture()
        if self.rows >= RUN:
            self.run.capture()
        self.x.copy_(x0)

    def load(self, ends: Sequence[float], sizes: Sequence[float]) -> None:
        """The next steps, at most as many as there are rows."""
        left = self.rows - len(sizes)
        told = [*ends, *[ends[-1]] * left, *sizes, *[0.0] * left]
        if told != self._told:
            self.numbers.copy_(torch.tensor(told, dtype=F64, device="cpu"), non_blocking=True)
            self._told = told
        self.n.zero_()

    def __call__(self, count: int, places: Iterable[int]) -> list[Tensor]:
        """The states after so many of the loaded steps, and after others before that.

        Args:
            count: of steps.
            places: after which steps a state is wanted, rising, and all below `count`.
        """
        states, at = [], 0
        for place in (*places, count):
            while at < place:
                long = place - at >= RUN
                (self.run if long else self.step)()
                at += RUN if long else 1
            states.append(self.x.clone())
        return states

    def _run(self) -> None:
        for _ in range(RUN):
            self._step()

    def _step(self) -> None:
        arithmetic, x = self.arithmetic, self.x
        with torch.no_grad(), self.field.autocast.outside(x.device):
            number = self._locate(self.n, self._grid, self._sizes, self.span)
            times, size = arithmetic.points(self.c, self.span, x)
            k: list[Tensor] = []
            for i in range(arithmetic.tableau.used):
                k.append(self.field(times[i], arithmetic.stages[i](x, size, *k)))
            self._move(number, x, size, self.xs, *k)

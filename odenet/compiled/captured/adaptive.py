"""A walk whose steps the device picks: masked steps, of which any number may be taken without a look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odenet.compiled.captured.arithmetic import ACTIVE, HEADER, TRIES, Arithmetic, H, N, T
from odenet.compiled.captured.field import Field, kept
from odenet.compiled.captured.replay import Replay
from odenet.compiled.record import Chunk

F64 = torch.float64
FIRST_LOOK = 8


@dataclass(kw_only=True)
class HostChunk(Chunk):
    """A part of the accepted grid, which the host knows.

    Attributes:
        ends: of the steps, one more than there are.
        lengths: of the steps, signed.
    """

    ends: list[float]
    lengths: list[float]

    @classmethod
    def of(cls, ends: list[float], lengths: list[float], states: Tensor) -> HostChunk:
        """The grid with the states at the starts of its steps."""
        grid, sizes = (torch.tensor(numbers, dtype=F64, device="cpu") for numbers in (ends, lengths))
        return cls(grid, sizes, states, len(lengths), ends=ends, lengths=lengths)


class AdaptiveWalk:
    """Steps of one method from a state of one shape, on places in memory that stay.

    Args:
        field: F.
        arithmetic: of the method.
        x0: a state.
        rows: steps that the record has room for.
        keep: whether the states at the starts of the steps are recorded.
        estimate: whether the size of the first step is to be estimated.
        outputs: how many answers there are between t0 and t1.

    Attributes:
        launched: steps that the last walk took, trials and those after its end.
    """

    def __init__(
        self, field: Field, arithmetic: Arithmetic, x0: Tensor, rows: int, keep: bool, estimate: bool, outputs: int
    ):
        self.field, self.arithmetic, self.rows, self.keep, self.estimate = field, arithmetic, rows, keep, estimate
        self.tableau, self.launched, self._last = arithmetic.tableau, 0, 0
        with torch.inference_mode(False):
            self.x, self.k, self.outputs = kept(x0), kept(x0), kept(x0, outputs)
            self.xs = kept(x0, rows + 1 if keep else 0)  # the last row is for what is not accepted
            self.ledger = torch.zeros(HEADER + 2 * (rows + 1), dtype=F64, device=x0.device)
            self.given = torch.zeros(8 + HEADER + outputs, dtype=F64, device=x0.device)
            self.c = torch.tensor(self.tableau.c, dtype=F64, device=x0.device)
        self._numbers, self._start, self._times = self.given.split([8, HEADER, outputs])
        self._told: list[float] | None = None
        self._plan, self._judge = arithmetic.planned(rows), arithmetic.judged(rows, keep)
        self.begin = Replay(self._begin, x0.device)
        self.step = Replay(self._step, x0.device, self.begin)

    def load(self, x0: Tensor, numbers: Sequence[float], t0: float, first: float, times: Sequence[float]) -> None:
        """Where the next walk begins, and how it goes.

        Args:
            x0: state.
            numbers: t1, sign, rtol, atol, h_min, h_max, smallest step, budget of steps.
            t0: time.
            first: size of the first step, if it is not estimated.
            times: of the answers between t0 and t1.
        """
        told = [*numbers, 0.0, t0, first, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, *times]
        if told != self._told:
            self.given.copy_(torch.tensor(told, dtype=F64, device="cpu"), non_blocking=True)
            self._told = told
        self.x.copy_(x0)

    def capture(self) -> None:
        """Make the graphs, from what was loaded; on CUDA."""
        x0 = self.x.clone()
        for work in (self.begin, self.step):
            work.capture()
            self.x.copy_(x0)

    def __call__(self) -> tuple[list[float], list[HostChunk]] | None:
        """Walk to t1; None if the walk broke down.

        Returns:
            The ledger's header at the end, and the record.
        """
        t1, chunks = self._told[0], []  # type: ignore[index]
        self.begin()
        self.launched, more = 0, min(self._last or FIRST_LOOK, self.rows)
        while True:
            for _ in range(more):
                self.step()
            self.launched += more
            ledger = self.ledger.tolist()  # the look
            n, t = int(ledger[N]), ledger[T]
            if t == t1 or n == self.rows:
                chunks.append(self._chunk(ledger))
            if t == t1:
                self._last = int(ledger[TRIES])
                return ledger[:HEADER], chunks
            if n == self.rows:
                self.ledger[:1].zero_()
                n = 0
            elif not ledger[ACTIVE]:
                return None
            left = abs(t1 - t) / max(ledger[H], 1e-300)
            more = int(min(left, ledger[TRIES], self.rows - n - 1)) + 1

    def _chunk(self, ledger: list[float]) -> HostChunk:
        """The record so far."""
        n, ts = int(ledger[N]), ledger[HEADER:]
        ends, lengths = [*ts[:n], ledger[T]], ts[self.rows + 1 : self.rows + 1 + n]
        return HostChunk.of(ends, lengths, self.xs[:n].clone() if self.keep else self.xs)

    def _begin(self) -> None:
        with torch.no_grad(), self.field.autocast.outside(self.x.device):
            self.ledger[:HEADER].copy_(self._start)
            self.outputs.zero_()
            self.k.copy_(self.field(self._start[T].to(self.x.dtype), self.x))
            sizes = slope = None
            if self.estimate:
                sizes, time, state = self.arithmetic.probe(self.ledger, self._numbers, self.x, self.k)
                slope = self.field(time, state)
            self.arithmetic.begin(self.ledger, self._numbers, self.x, self.k, sizes, slope)

    def _step(self) -> None:
        """One masked step."""
        arithmetic, tableau, x = self.arithmetic, self.tableau, self.x
        with torch.no_grad(), self.field.autocast.outside(x.device):
            plan = self._plan(self.ledger, self._numbers)
            times, size = arithmetic.points(self.c, plan[0], x)
            at, k = x, [self.k]
            for i in range(1, tableau.stages):
                at = arithmetic.stages[i](x, size, *k[:i])
                k.append(self.field(times[i], at))
            x_next = at if tableau.fsal else arithmetic.end(x, size, *k)
            self._judge(
                self.ledger, self._numbers, plan, size, x, self.k, x_next, self.xs, self._times, self.outputs, *k
            )
            if not tableau.fsal:
                self.k.copy_(self.field(self.ledger[T].to(x.dtype), x))

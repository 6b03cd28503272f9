"""The answer of a solve in which each sample had its own steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError, SolveError
from odenet.solvers.per_sample.hit import SampleHit
from odenet.solvers.per_sample.outputs import Dense, Outputs
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.solution import Occurrences, Solution
from odenet.solvers.times import host_time


class SampleSolution(Solution):
    """States of every sample at its own times.

    Args:
        problem: what was solved.
        outputs: what was found.
        values: the states in `outputs`, one after the other, (rows, ...).
        ended: the time that each sample reached, (batch,) float64 on the host.
        status: what became of each sample.
        errors: why samples broke down, by sample.
        dense: the dense output, if the solution is to be callable.
        hits: events that happened, each with the place of its state in `values`.

    Attributes:
        ended: the time of `last`, for each sample: the last time of the answer, or that at which it broke down or at
            which a terminal event ended it, (batch,) float64.
        status: for each sample "success", "event", or the status of its error; a list.
        errors: the errors of the samples that broke down, by sample.
    """

    def __init__(
        self,
        problem: SampleProblem,
        outputs: Outputs,
        values: Tensor,
        ended: Tensor,
        status: list[str],
        errors: Mapping[int, SolveError],
        dense: Dense | None,
        hits: Sequence[tuple[SampleHit, int]],
    ):
        self.problem, self.outputs, self.values, self.ended = problem, outputs, values, ended
        self.stats, self.errors, self.dense, self.hits_found = problem.stats, dict(errors), dense, list(hits)
        self.status: Any = status
        self.events: list[Occurrences] = []
        self.unpack: Any = None
        self._place()

    def __repr__(self) -> str:
        """What became of the samples, number of outputs, and what it took, on one line."""
        became = ", ".join(f"{n} x {status!r}" for status, n in Counter(self.status).items())
        return f"SampleSolution({became}, outputs={len(self._slots)}, {self.stats.brief})"

    def _place(self) -> None:
        """Find out which value belongs where."""
        outputs = self.outputs
        places = torch.cat(outputs.places) if outputs.places else torch.zeros(0, dtype=torch.long)
        batch, rows = outputs.batch, torch.arange(len(places))
        slots = torch.full(((outputs.stopped + 1) * batch + 1,), -1)
        slots[places] = rows
        slots = slots[:-1].reshape(outputs.stopped + 1, batch)
        early = slots[-1] >= 0
        self._slots = torch.where(early & outputs.only_ends, slots[-1], slots[:-1])
        self._last = torch.where(early, slots[-1], slots[-2])

    @property
    def error(self) -> SolveError | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The error of the first sample that broke down, or None."""
        return self.errors[min(self.errors)] if self.errors else None

    def join(self, later: Sequence[SampleSolution]) -> None:
        """Take the values and steps of the walks that went on from events that had changed states."""
        self.values = torch.cat([self.values, *(walk.values for walk in later)]) if later else self.values
        for walk in later:
            self.outputs.places += walk.outputs.places
            if self.dense is not None and walk.dense is not None:
                self.dense.join(walk.dense, walk.problem.walking)
        self._place()

    @property
    def ys(self) -> Any:
        """States, shape (len(ts), batch, ...), or a tree of such tensors; NaN at times that a sample did not reach.

        Without `ts` the one state in which each sample ended.
        """
        ys = self._gather(self._slots.flatten()).reshape(*self._slots.shape, *self.values.shape[1:])
        return self.unpack(ys, 1) if self.unpack else ys

    @property
    def states(self) -> Any:
        """The states at each of `ts`, packed if they are trees."""
        return list(self._gather(self._slots.flatten()).reshape(*self._slots.shape, *self.values.shape[1:]))

    @property
    def times(self) -> Any:
        """`ts` as a list: numbers, or lists of one for each sample."""
        return self.ts.tolist()

    @property
    def ts(self) -> Tensor:
        """Times of the states, float64: (len(ts),) where the samples share them, else (len(ts), batch)."""
        if self.outputs.only_ends:
            same = bool((self.ended == self.ended[:1]).all())
            return self.ended[:1] if same else self.ended[None]
        return self.outputs.ts[:, 0] if self.problem.shared and self.outputs.batch else self.outputs.ts

    @property
    def last(self) -> Any:
        """The state in which each sample ended, of x0's shape and structure; `ended` has the times."""
        x = self._gather(self._last)
        return self.unpack(x) if self.unpack else x

    def __call__(self, t: Any) -> Any:
        """x(t) by the method's dense output, of x0's shape and structure.

        Args:
            t: a time, or one for each sample, (batch,).

        Raises:
            InputError: the solve was made without `dense=True`, or t lies outside what a sample walked.
        """
        if self.dense is None:
            raise InputError("a solution can be called only if it was made with dense=True")
        batch = self.outputs.batch
        if isinstance(t, Tensor) and t.dim() == 1 and len(t) == batch:
            times = t.detach().to("cpu", torch.float64)
        else:
            times = torch.full((batch,), host_time("t", t), dtype=torch.float64)
        x, known = self.dense.at(times)
        if not bool(known.all()):
            sample = int((~known).nonzero()[0])
            raise InputError(
                f"t must lie between {float(self.problem.t0[sample]):g} and {float(self.dense.reached[sample]):g} for "
                f"sample {sample}, got {float(times[sample]):g}"
            )
        return self.unpack(x) if self.unpack else x

    def _gather(self, slots: Tensor) -> Tensor:
        missing = slots < 0
        index = slots.clamp(min=0).to(self.values.device)
        if not len(self.values):
            return self.values
        x = self.values.index_select(0, index)
        if not bool(missing.any()):
            return x
        shape = (-1, *(1,) * (x.dim() - 1))
        return x.masked_fill(missing.to(x.device).reshape(shape), torch.nan)

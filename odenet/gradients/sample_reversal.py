"""The way back of a reversible method where every sample had its own steps: each undone row by row, no state stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from odenet.gradients.pullback import leaf, plus
from odenet.gradients.sample_record import Round, SamplePullback, SampleRecord, at_ends, inside, of_take
from odenet.gradients.sample_states import StoredRounds, whole_step
from odenet.solvers.per_sample.control import on_host, rms_each
from odenet.solvers.per_sample.outputs import Step
from odenet.solvers.per_sample.rows import put, select
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import Memory, Trial


class Watcher(Protocol):
    """Says what is done about the rounding of a reconstruction; `odenet.gradients.reversal.Drift`."""

    def found(self, drift: float, stats: Stats, whose: str) -> bool:
        """Whether the gradient is to be computed again from stored states."""
        ...


class SampleReversal:
    """A sweep that keeps the state in which each sample ended, and the memory where the next step makes it anew.

    The rounds are gone back over one by one; in each, the samples that made a step in it are undone by that step, each
    with its own t and h, from wherever their own later steps have brought them.

    Args:
        undo: (pullback) -> how steps are undone, an `odenet.gradients.reversal.Undo`.
        watcher: told of the largest relative error of a reconstructed x0.
    """

    def __init__(self, undo: Callable[[Any], Any], watcher: Watcher):
        self.undo, self.watcher = undo, watcher
        self._last: list[Tensor] = []
        self._ends: list[Tensor] = []
        self._walked: Tensor | None = None
        self._renewed: dict[int, Tensor] = {}
        self._lengths: list[int] = []

    def keep(self, record: SampleRecord, step: Step) -> None:
        """Go on to where these steps ended; keep the memory that others of these samples had and is made anew."""
        samples, trial, number = step.f.samples, step.trial, len(record.rounds) - 1
        device = trial.x.device
        if self._walked is None:
            self._walked = torch.zeros(record.batch, dtype=torch.bool)
        again = samples[step.fresh & self._walked[samples]]
        if len(again):
            self._renewed[number] = again
            self._lengths.append(len(self._last) - 1)
            self._ends += select(self._last[1:], again.to(device))
        self._walked[samples] = True
        ends = put(self._last, samples.to(device), [trial.x_next, *trial.memory.tensors], record.batch)
        self._last = ends

    def kept(self) -> list[Tensor]:
        """The memories that were made anew, and the last states."""
        kept = [*self._ends, *self._last]
        self._ends, self._last = [], []
        return kept

    def back(
        self, record: SampleRecord, x0: Tensor, kept: list[Tensor], cotangent: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Round by round from the end; the reconstructed x0 is compared with the true one, sample by sample."""
        pullback, stats, device = SamplePullback(record), record.problem.stats, x0.device
        undo, ends, lengths = self.undo(pullback), kept[: sum(self._lengths)], list(self._lengths)
        state: list[Any] = kept[sum(self._lengths) :]
        a: list[Tensor | None] = [torch.zeros_like(x0)]  # no None: a sample's costs are not to depend on others
        a += [torch.zeros_like(part) if part.is_floating_point() or part.is_complex() else None for part in state[1:]]
        after = torch.zeros(record.batch, *[1] * (x0.dim() - 1), dtype=x0.dtype.to_real(), device=device)
        for number in reversed(range(len(record.rounds))):
            done = record.rounds[number]
            for samples, seed in at_ends(done, cotangent):
                a[0] = _of(a[0]).index_add(0, samples.to(device), seed)
            if not isinstance(done, Round):
                continue
            index = done.samples.to(device)
            end = select(state[: 1 + done.left], index)
            seeds = select(a[: len(end)], index)
            span, undo.times = record.where(done, end[0]), done.memory_times
            end = undo.reach(span, *select([after], index), end)
            more: list[Tensor | None] = []
            if done.inside:
                more, at_end = self._inside(undo, pullback, done, span, end, cotangent)
                seeds = [plus(p, q) for p, q in zip(seeds, at_end, strict=False)]
            start, seeds = undo.step(span, end, seeds)
            seeds = [plus(p, q) for p, q in zip(seeds, [*more, *[None] * len(seeds)], strict=False)]
            stats.steps_backward += 1
            state, a = put(state, index, start, record.batch), put(a, index, seeds, record.batch)
            after = put([after], index, [span.h], record.batch)[0]
            if len(done.begin):
                state, a, after = self._begin(undo, done, span, start, seeds, (state, a, after))
                if number in self._renewed:
                    memory = [ends.pop() for _ in range(lengths.pop())][::-1]
                    state[1:] = put(state[1:], self._renewed[number].to(device), memory, record.batch)
        if self._watched(state, x0, stats):
            stored = StoredRounds(whole_step)
            return stored.back(record, x0, stored.redone(record, x0), cotangent)
        return _of(a[0]), pullback.gradients

    def _begin(
        self, undo: Any, done: Round, span: Any, start: list[Any], seeds: list[Tensor | None], whole: Any
    ) -> tuple[list[Any], list[Tensor | None], Tensor]:
        """Over the making of the memory, for the rows where it was made; `whole` are (state, a, after) of all."""
        state, a, after = whole
        rows = done.begin
        index = rows.to(after.device)
        part, batch = span.rows(rows, index), len(after)
        x, a_x = undo.begin(part, select(start, index), select(seeds, index))
        samples = done.samples[rows].to(after.device)
        none: list[Tensor | None] = [None] * (len(a) - 1)
        return (
            put(state, samples, [x], batch),
            put(a, samples, [a_x, *none], batch),
            put([after], samples, [torch.zeros_like(part.h)], batch)[0],
        )

    def _inside(
        self, undo: Any, pullback: SamplePullback, done: Round, span: Any, end: list[Tensor], cotangent: Tensor
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Cotangents of the states at both ends of steps from those of values inside them."""
        record, stats, device, takes = pullback.record, pullback.stats, end[0].device, done.inside
        rows = torch.cat([take.rows for take in takes]).unique()
        index = rows.to(device)
        part = span.rows(rows, index)
        end = select(end, index)
        start = undo.invert(part, end)
        takes = [take._replace(rows=torch.searchsorted(rows, take.rows)) for take in takes]
        before = stats.nfe_backward
        with torch.enable_grad():
            part.piece = pullback.field.on(part.piece.samples, part.piece.segments)  # arguments, with their graph
            leaves = [leaf(tensor) for tensor in (*start, *end)]
            (x, *given), (x_next, *memory) = leaves[: len(start)], leaves[len(start) :]
            trial = Trial(part, x, x_next, [], given=Memory(tuple(given)), memory=Memory(tuple(memory)))
            found = inside(record, takes, trial)
        stats.vjps += stats.nfe_backward - before
        pairs: Any = [(value, of_take(cotangent, take)) for take, value in found]
        seeds = put([], index, pullback.through(part.piece, pairs, leaves), len(span.t))
        return seeds[: len(start)], seeds[len(start) :]

    def _watched(self, state: list[Any], x0: Tensor, stats: Stats) -> bool:
        """Whether the gradient is to be computed again from stored states."""
        if self._walked is None or not bool(self._walked.any()):
            return False
        size = on_host(rms_each(x0))
        drift = on_host(rms_each(state[0] - x0)) / torch.where(size == 0, 1.0, size)
        drift = torch.where(self._walked, drift.nan_to_num(torch.inf), 0.0)
        return self.watcher.found(float(drift.max()), stats, f"the steps of sample {int(drift.argmax())}")


def _of(part: Tensor | None) -> Tensor:
    assert part is not None
    return part

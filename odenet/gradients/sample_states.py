"""Checkpointed backprop where every sample had its own steps: the steps of each again, one round's graph at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.binomial import Store, backwards
from odenet.gradients.pullback import leaf
from odenet.gradients.sample_record import Round, SamplePullback, SampleRecord, at_ends, of_take, rows_before
from odenet.solvers.per_sample.outputs import Step, Take
from odenet.solvers.per_sample.rows import put, select

StepBack = Callable[
    [SamplePullback, Round, list[Tensor], list["Tensor | None"], Tensor],
    list["Tensor | None"],
]


class StoredRounds:
    """A sweep from kept states: those of the rows that made a step, or of all samples before some of the rounds.

    With `checkpoints` every k-th round is kept, k being doubled whenever they become too many; the way back divides
    the gaps as `odenet.gradients.binomial` says.

    Args:
        step_back: the way back over the steps of a round, as `whole_step`.
        checkpoints: how many states (batch, ...) may be kept beside x0, or None for those of all steps.
    """

    def __init__(self, step_back: StepBack, checkpoints: int | None = None):
        self.step_back, self.checkpoints = step_back, checkpoints
        self._kept: list[Tensor] = []
        self._store = None if checkpoints is None else Store(checkpoints, None)
        self._state: list[Tensor] = []
        self._layout: list[tuple[int, int]] = []

    def keep(self, record: SampleRecord, step: Step) -> None:
        """Keep what the steps started from, or what all samples did, if the round is among those to be kept."""
        trial, number = step.trial, len(record.rounds) - 1
        if self._store is None:
            self._kept += [trial.x, *trial.given.tensors]
            return
        state = self._state or [record.problem.x0.detach()]
        if number:
            self._store.put(number, state)
        index = step.f.samples.to(trial.x.device)
        self._state = put(state, index, [trial.x_next, *trial.memory.tensors], record.batch)  # pyright: ignore

    def kept(self) -> list[Tensor]:
        """The kept states, flat."""
        kept, self._kept, self._state = self._kept, [], []
        if self._store is not None:
            self._layout, kept = self._store.take()
        return kept

    def redone(self, record: SampleRecord, x0: Tensor) -> list[Tensor]:
        """What the steps of all rounds started from, by taking them again."""
        state, kept = [x0], []
        for number, done in enumerate(record.rounds):
            if isinstance(done, Round):
                kept += rows_before(state, done)
                state = record.advance(state, number, number + 1)
        return kept

    def back(
        self, record: SampleRecord, x0: Tensor, kept: list[Tensor], cotangent: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Round by round from the end."""
        pullback = SamplePullback(record)
        a: list[Tensor | None] = [torch.zeros_like(x0)]
        for done, start in self._starts(record, x0, kept):
            for samples, seed in at_ends(done, cotangent):
                assert a[0] is not None
                a[0] = a[0].index_add(0, samples.to(x0.device), seed)
            if start is None or not isinstance(done, Round):
                continue
            record.problem.stats.steps_backward += 1
            index = done.samples.to(x0.device)
            found = self.step_back(pullback, done, start, select(a, index), cotangent)
            a = put(a, index, found, record.batch)
        assert a[0] is not None
        return a[0], pullback.gradients

    def _starts(
        self, record: SampleRecord, x0: Tensor, kept: list[Tensor]
    ) -> Iterator[tuple[Round | Sequence[Take], list[Tensor] | None]]:
        """All rounds from the last one, with what their steps started from."""
        if self._store is None:
            for done in reversed(record.rounds):
                length = 1 + done.memories if isinstance(done, Round) else 0
                yield done, [kept.pop() for _ in range(length)][::-1] or None
            return
        parts = iter(kept)
        del kept
        stack = [(0, [x0]), *((number, [next(parts) for _ in range(length)]) for number, length in self._layout)]
        for end, number, start in backwards(len(record.rounds), stack, self.checkpoints, record.advance):
            done = record.rounds[end]
            yield done, rows_before(record.advance(start, number, end), done) if isinstance(done, Round) else None


def whole_step(
    pullback: SamplePullback, done: Round, start: list[Tensor], a: list[Tensor | None], cotangent: Tensor
) -> list[Tensor | None]:
    """Cotangents of what the steps of a round started from, through the graph of the whole steps.

    Args:
        pullback: collects the gradients of the tensors that F uses.
        done: the round.
        start: states and memories that the steps started from, (rows, ...).
        a: of the states and memories that they ended in; None where nothing has arrived.
        cotangent: of the values of the answer.
    """
    record, stats = pullback.record, pullback.stats
    before = stats.nfe_backward
    with torch.enable_grad():
        leaves = [leaf(part) for part in start]
        trial, found = record.redo(done, leaves[0], leaves[1:])
    stats.vjps += stats.nfe_backward - before
    pairs = [
        *zip([trial.x_next, *trial.memory.tensors], a, strict=False),
        *((x, of_take(cotangent, take)) for take, x in found),
    ]
    span: Any = trial.span
    return pullback.through(span.piece, pairs, leaves)

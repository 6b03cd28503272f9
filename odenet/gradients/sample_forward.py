"""Forward mode where every sample had its own steps: the tangents of all samples, round by round from x0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odenet.gradients.pullback import leaf, plus
from odenet.gradients.pushforward import Direction, Pushforward, directions
from odenet.gradients.sample_record import Round, SampleRecord, at_ends, of_take, rows_before
from odenet.solvers.per_sample.outputs import Step
from odenet.solvers.per_sample.rows import put, select


class SampleTangents:
    """The sweep that pushes tangents forward. An element of x0 is one of every sample, so their number is the state's.

    Args:
        limit: the most numbers that are accepted.
    """

    def __init__(self, limit: int):
        self.limit = limit

    def keep(self, record: SampleRecord, step: Step) -> None:
        """Nothing: the steps are taken again from x0."""

    def kept(self) -> list[Tensor]:
        """Nothing."""
        return []

    def back(
        self, record: SampleRecord, x0: Tensor, kept: list[Tensor], cotangent: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Round by round from x0, with the tangents of all numbers."""
        wanted = directions(x0, record.inputs.tensors, self.limit, each=True)
        state: list[Any] = [x0]
        tangents: list[list[Tensor | None]] = [[d.vector(x0) if d.each else None] for d in wanted]
        slopes = [x0.new_zeros(len(x0), dtype=x0.dtype.to_real()) for _ in wanted]
        for done in record.rounds:
            if isinstance(done, Round):
                state = self._push(record, done, state, wanted, tangents, slopes, cotangent)
            for samples, seed in at_ends(done, cotangent):
                index = samples.to(x0.device)
                for p, (x, *_) in enumerate(tangents):
                    _meet(slopes[p], index, None if x is None else x.index_select(0, index), seed)
        found: list[Tensor | None] = [None] * (1 + len(record.inputs.tensors))
        for direction, slope in zip(wanted, slopes, strict=True):
            place = 0 if direction.index is None else direction.index + 1
            like = x0 if place == 0 else record.inputs.tensors[place - 1]
            size = slope.reshape(-1, *(1,) * (x0.dim() - 1)) if direction.each else slope.sum()
            found[place] = plus(found[place], direction.vector(like.detach()) * size)
        return torch.zeros_like(x0) if found[0] is None else found[0], found[1:]

    def _push(
        self,
        record: SampleRecord,
        done: Round,
        state: list[Any],
        wanted: list[Direction],
        tangents: list[list[Tensor | None]],
        slopes: list[Tensor],
        cotangent: Tensor,
    ) -> list[Any]:
        """Over the steps of a round: changes tangents and slopes, and returns the states of all samples after it."""
        stats, index = record.problem.stats, done.samples.to(state[0].device)
        before = stats.nfe_backward
        with torch.enable_grad():
            leaves = [leaf(part) for part in rows_before(state, done)]
            trial, found = record.redo(done, leaves[0], leaves[1:])
            end = [trial.x_next, *trial.memory.tensors]
            results = [*end, *(value for _, value in found)]
            span: Any = trial.span
            count = stats.nfe_backward - before
            push = Pushforward(record.inputs, span.piece.pieces, leaves, results, stats, count)
        stats.steps_backward += 1
        for p, direction in enumerate(wanted):
            moved = push.push(select(tangents[p], index), direction)
            tangents[p] = put(tangents[p], index, moved[: len(end)], record.batch)
            for (take, _), tangent in zip(found, moved[len(end) :], strict=True):
                _meet(slopes[p], index[take.rows.to(index.device)], tangent, of_take(cotangent, take))
        return put(state, index, [part.detach() for part in end], record.batch)


def _meet(slope: Tensor, index: Tensor, tangent: Tensor | None, a: Tensor) -> None:
    """Add ⟨a, ẋ⟩ of some samples."""
    if tangent is not None:
        slope.index_add_(0, index, (a.conj() * tangent).real.unsqueeze(-1).flatten(1).sum(1))

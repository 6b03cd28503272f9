"""The states of a compiled solve of samples with their own steps, as differentiable functions."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.gradient import read_again
from odenet.compiled.per_sample.walk import SampleGraphs, Walked
from odenet.compiled.report import tell, warn_back
from odenet.compiled.scope import Leaves
from odenet.gradients.inputs import Inputs
from odenet.gradients.per_sample import differentiable_again
from odenet.gradients.sample_record import Round, SampleRecord
from odenet.gradients.sample_states import StoredRounds, whole_step
from odenet.solvers.per_sample import SampleProblem
from odenet.solvers.per_sample.outputs import Outputs, Take


def differentiable(
    problem: SampleProblem, graphs: SampleGraphs, walked: Walked, leaves: Leaves, outputs: Outputs, values: Tensor
) -> Tensor:
    """The values of the answer of a compiled solve, with their gradients."""
    given = problem, graphs, walked, leaves, outputs
    return _Compiled.apply(given, values, problem.x0, *leaves.tensors)  # pyright: ignore[reportReturnType]


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Any, values: Tensor, x0: Tensor, *tensors: Tensor) -> Tensor:
        ctx.given, ctx.count = given, len(tensors)
        problem, _, walked, *_ = given
        ctx.unchanged = read_again(problem, walked)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x0, *tensors)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> Any:
        problem, graphs, walked, leaves, outputs = ctx.given
        x0 = ctx.saved_tensors[0]  # raises if a tensor was changed in place
        ctx.unchanged.check()
        if cotangent is None:
            return None, None, *[None] * (1 + ctx.count)
        if torch.is_grad_enabled():
            record, _ = record_of(problem, walked, outputs)
            found = differentiable_again(record, x0, tuple(record.inputs.tensors), cotangent)
            return None, None, *_named(record, found, leaves)
        start, end, inside = _sorted(problem, walked, outputs, cotangent)
        before, begin = graphs.compilations, time.perf_counter()
        try:
            a, *gradients = graphs.back(problem, walked, leaves, end, inside)
        except Exception as error:
            warn_back(error)
            record, kept = record_of(problem, walked, outputs)
            with problem.field.recompute():
                a, found = StoredRounds(whole_step).back(record, x0, kept, cotangent)
            return None, None, *_named(record, (a + start, *found), leaves)
        if graphs.compilations != before:
            tell("its gradient", problem, time.perf_counter() - begin)
        return None, None, a + start, *gradients


def _named(record: SampleRecord, found: Any, leaves: Leaves) -> list[Tensor | None]:
    """Gradients of x0 and of the leaves, from those of x0 and of a record's inputs."""
    a, *gradients = found
    known = dict(zip(map(id, record.inputs.tensors), gradients, strict=True))
    return [a, *(known.get(id(tensor)) for tensor in leaves.tensors)]


def _sorted(
    problem: SampleProblem, walked: Walked, outputs: Outputs, cotangent: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cotangents of the states at t0, of the last ones, and of those at `walked.times` (None if there are none)."""
    shape, device = problem.x0.shape, cotangent.device
    whole = cotangent.new_zeros(outputs.stopped * outputs.batch, *shape[1:])
    whole = whole.index_copy_(0, torch.cat(outputs.places).to(device), cotangent).unflatten(0, (-1, outputs.batch))
    of = lambda mask: torch.where(mask.to(device).reshape(*mask.shape, *[1] * (len(shape) - 1)), whole, 0)  # noqa: E731
    at_start = outputs.ts == problem.t0
    at_end = (outputs.ts == problem.t1) & ~at_start
    inside = None
    if len(walked.times):
        inside = of(~(at_start | at_end))
        more = len(walked.times) - len(inside)
        inside = torch.cat([inside, inside.new_zeros(more, *shape)])
    return of(at_start).sum(0), of(at_end).sum(0), inside


def record_of(problem: SampleProblem, walked: Walked, outputs: Outputs) -> tuple[SampleRecord, list[Tensor]]:
    """The record as the eager gradients know it, a round for each number of accepted steps, and what it keeps."""
    record = SampleRecord(problem, Inputs(problem))  # pyright: ignore[reportArgumentType]
    if record.inputs.computed is False:
        record.inputs.computed = True
    kept: list[Tensor] = []
    places = torch.cat(outputs.places)
    where = torch.full((outputs.stopped * outputs.batch,), -1)
    where[places] = torch.arange(len(places))
    where = where.reshape(outputs.stopped, outputs.batch)
    record.start = places[: outputs.at_start] % max(1, outputs.batch), outputs.at_start
    ts = outputs.ts
    for phase in walked.phases:
        starts, ends = phase.record[0].cpu()
        for n in range(phase.steps):
            rows = (phase.accepted > n).nonzero()[:, 0]
            samples, t, t_next = phase.samples[rows], starts[n, rows], ends[n, rows]
            sign = problem.sign[samples]
            due = (ts[:, samples] - t) * sign > 0
            due &= (ts[:, samples] - t_next) * sign <= 0
            takes = [
                Take(
                    torch.tensor([row]),
                    None if bool(ts[i, samples[row]] == t_next[row]) else ts[i, samples[row]][None],
                    int(where[i, samples[row]]),
                )
                for i, row in due.nonzero().tolist()
            ]
            segments = torch.zeros_like(samples) if phase.segments is None else phase.segments[n, rows]
            record.rounds.append(Round(samples, segments, (t, t_next), None, takes))
            kept.append(phase.record[1][n].index_select(0, rows.to(problem.x0.device)))
    return record, kept

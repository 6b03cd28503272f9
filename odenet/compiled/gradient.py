"""The states of a compiled solve as differentiable functions of x0 and of the tensors that F uses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.record import Walked
from odenet.compiled.report import tell, warn_back
from odenet.compiled.scope import Leaves
from odenet.compiled.walk import Graphs
from odenet.gradients.checkpoint import StoredStates, step_back
from odenet.gradients.inputs import Inputs
from odenet.gradients.pullback import plus
from odenet.gradients.record import Record
from odenet.gradients.replay import differentiable_again
from odenet.solvers.holdings import Unchanged
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers
from odenet.solvers.stepper import Span


def differentiable(problem: Problem, graphs: Graphs, walked: Walked, leaves: Leaves) -> list[Tensor]:
    """The answers of a compiled solve, with their gradients."""
    return list(_Compiled.apply(problem, graphs, walked, leaves, problem.x0, *leaves.tensors))


def read_again(problem: Any, walked: Any) -> Unchanged:
    """What the way back over the record of a compiled solve reads again."""
    uses = getattr(walked, "uses", None)
    given = problem.weights.parameters() if uses is None else [x for use in uses for x in use.given()]
    return Unchanged(("a tensor of shape {} that F holds", x) for x in given)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, graphs: Graphs, walked: Walked, leaves: Leaves, x0: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.problem, ctx.graphs, ctx.walked, ctx.leaves = problem, graphs, walked, leaves
        ctx.unchanged = read_again(problem, walked)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x0, *tensors)
        states, walked.states = walked.states, []
        return tuple(
            x.clone() if x is x0 or any(x is other for other in states[:i]) else x for i, x in enumerate(states)
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        problem: Problem = ctx.problem
        x0 = ctx.saved_tensors[0]  # raises if a tensor was changed in place
        ctx.unchanged.check()
        if torch.is_grad_enabled():
            record = record_of(problem, ctx.walked)
            return *[None] * 4, *differentiable_again(record, x0, tuple(ctx.leaves.tensors), cotangents)
        start, end, inside = None, None, []
        for t, cotangent in zip(problem.ts, cotangents, strict=True):
            if t == problem.t0:
                start = plus(start, cotangent)
            elif t == problem.t1:
                end = plus(end, cotangent)
            else:
                inside.append(cotangent)
        if all(c is None for c in inside):
            inside = []
        if end is None and not inside:
            return *[None] * 4, start, *[None] * len(ctx.leaves.tensors)
        before, begin = ctx.graphs.compilations, time.perf_counter()
        try:
            a, *gradients = ctx.graphs.back(
                problem, ctx.walked, ctx.leaves, torch.zeros_like(x0) if end is None else end, inside
            )
        except Exception as error:
            warn_back(error)
            return *[None] * 4, *_eagerly(problem, ctx.walked, x0, ctx.leaves, cotangents, start)
        if ctx.graphs.compilations != before:
            tell("its gradient", problem, time.perf_counter() - begin)
        return *[None] * 4, plus(a, start), *gradients


def _eagerly(
    problem: Problem, walked: Walked, x0: Tensor, leaves: Leaves, cotangents: Sequence[Tensor | None], start: Any
) -> list[Tensor | None]:
    """The same gradients step by step, where the graph of F's gradient could not be made."""
    record, sweep = record_of(problem, walked), StoredStates(step_back, None, None)
    states = [state for chunk in walked.chunks for state in chunk.states[chunk.first : chunk.count]]
    sweep.hold({number: [state] for number, state in enumerate(states) if number})
    with problem.field.recompute():
        a, gradients = sweep.back(record, x0, sweep.kept(), cotangents)
    found = dict(zip(map(id, record.inputs.tensors), gradients, strict=True))
    return [plus(a, start), *(found.get(id(tensor)) for tensor in leaves.tensors)]


def record_of(problem: Problem, walked: Walked) -> Record:
    """The accepted grid as the eager gradient methods know it."""
    spans = []
    for chunk in walked.chunks:
        ends, sizes = chunk.grid.tolist(), chunk.sizes.tolist()
        steps = range(chunk.first, chunk.count)
        spans += [Span(chunk.piece, ends[i], ends[i + 1], sizes[i]) for i in steps]
    return Record(
        problem, solvers[problem.scheme.solver], Inputs(problem), list(problem.ts), spans, [() for _ in spans]
    )

"""Sums of estimates over the accepted steps, differentiable, each step taken again on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.inputs import Inputs, vjp
from odenet.gradients.pullback import leaf
from odenet.regularisers.estimates import Estimate, Step
from odenet.solvers.ends import StepEnds, Unpack
from odenet.solvers.problem import Problem, transforms
from odenet.solvers.registry import solvers
from odenet.solvers.stepper import Span


class Estimates:
    """Estimates of a step, |h| times each: what is summed over the steps of a solve.

    Args:
        estimates: what is asked of each step.
    """

    def __init__(self, estimates: Sequence[Estimate]):
        self.estimates = estimates

    def __call__(self, problem: Problem, span: Span, x: Tensor, x_next: Tensor, unpack: Unpack | None) -> Tensor:
        """Shape (batch, estimates); the step is taken again from x."""
        show = _whole if unpack is None else lambda packed: unpack(packed)[0]
        stepper = solvers[problem.scheme.solver].prepare(problem)
        step = Step(stepper, problem.field.piece(span.piece), span, x, x_next, show)
        return torch.stack([estimate(step) for estimate in self.estimates], 1) * abs(span.h)


def total_of(ends: StepEnds, count: int) -> Tensor:
    """The sum over the steps of a solve, (batch, count).

    Where the gradient method has not summed it, it is summed here from the states at the ends of the steps. With
    gradient="autograd" the steps that are taken again stay on the tape; with any other they leave nothing, and are
    taken once more, one at a time, on the way back. Running statistics see none of it.
    """
    if ends.total is not None:
        return ends.total
    problem = ends.problem
    assert problem is not None
    x, parts = problem.x0, []
    taped = problem.scheme.gradient == "autograd" or bool(transforms())
    inputs = None if taped else Inputs(problem)
    with problem.field.consistency.recomputation():  # evaluations of the forward pass that leave no trace in F
        for span, x_next in zip(ends.spans, ends.states, strict=True):
            measure = partial(ends.measure, problem, span, unpack=ends.unpack)
            if inputs is None:
                parts.append(measure(x, x_next))
            else:
                parts.append(_recomputed(problem, inputs, span.piece, measure, x, x_next))
            x = x_next
    return torch.stack(parts).sum(0) if parts else x.new_zeros(len(x), count, dtype=x.dtype.to_real())


def _whole(x: Tensor) -> Tensor:
    return x


def _recomputed(
    problem: Problem, inputs: Inputs, piece: int, measure: Callable[[Tensor, Tensor], Tensor], x: Tensor, x_next: Tensor
) -> Tensor:
    return _Recomputed.apply(problem, inputs, piece, measure, x, x_next, *inputs.piece(piece))  # pyright: ignore[reportReturnType]


class _Recomputed(torch.autograd.Function):
    """A function of the states at both ends of a step, whose graph is made when its gradient is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        inputs: Inputs,
        piece: int,
        measure: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        x_next: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.problem, ctx.inputs, ctx.piece, ctx.measure = problem, inputs, piece, measure
        ctx.save_for_backward(x, x_next, *tensors)
        return measure(x.detach(), x_next.detach())

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        x, x_next, *tensors = ctx.saved_tensors
        again, stats = torch.is_grad_enabled(), ctx.problem.stats
        before = stats.nfe_backward
        with ctx.problem.field.recompute(), torch.enable_grad():
            ends = [t if again and t.requires_grad else leaf(t) for t in (x, x_next)]
            value = ctx.measure(*ends)
        stats.vjps += stats.nfe_backward - before
        ctx.inputs.check(ctx.piece, [value], *ends)
        asked = ctx.needs_input_grad[4:]
        wanted = [t for t, needed in zip((*ends, *tensors), asked, strict=True) if needed]
        keep = again or ctx.inputs.computed
        found = vjp([value], wanted, [a], keep, again) if value.requires_grad else [None] * len(wanted)
        parts = iter(found)
        return None, None, None, None, *(next(parts) if needed else None for needed in asked)

"""Reversible Heun: each step undone and differentiated with one evaluation of F."""

from __future__ import annotations

import torch
from torch import Tensor

from odenet.gradients.pullback import Evaluation, Pullback, plus
from odenet.gradients.registry import gradients
from odenet.gradients.reversal import Cotangent, State, Undone
from odenet.solvers.explicit import combine
from odenet.solvers.reversible import mirrored
from odenet.solvers.stepper import Span


class ReversibleHeun(Undone):
    """The steps of reversible Heun, undone:

        x̂ = 2x⁺ - x̂⁺ - h f̂⁺,   f̂ = F(t, x̂),   x = x⁺ - h/2 (f̂ + f̂⁺)

    and differentiated on the way; the evaluation that undoes a step is differentiated with the step before:

        a_f⁺ += h/2 a_x⁺,   (q, θ̄) += (∂F(x̂⁺))ᵀ a_f⁺,   a_x̂⁺ += q
        a_x = a_x⁺ + 2a_x̂⁺,   a_f = h/2 a_x⁺ + h a_x̂⁺,   a_x̂ = -a_x̂⁺

    Where x̂ and f̂ were made, a_x += a_x̂ + (∂F(x)/∂x)ᵀ a_f. Exact up to the rounding of the reconstruction; one
    evaluation of F and one vector-Jacobian product a step (one evaluation more for a step with outputs inside), and one
    of each for each piece of depth.

    Options: max_drift and on_drift, see `Undone`.

    Reference:
        Kidger et al. 2021, Efficient and Accurate Gradients for Neural SDEs.
    """

    name = "reversible_heun"
    memory = "three states (and two for each knot of the weights), and one evaluation of F"
    reference = "Kidger et al. 2021"

    def solvers(self) -> list[str]:
        return ["reversible_heun"]

    def undo(self, pullback: Pullback) -> _Undo:
        return _Undo(pullback)


class _Undo:
    """`slope` is f̂ at the state that was reached, with its graph, until that is pulled back."""

    def __init__(self, pullback: Pullback):
        self.pullback = pullback
        self.slope: Evaluation | None = None

    @torch.no_grad()
    def invert(self, span: Span, end: State) -> State:
        other = _other(span, end)
        return _undone(span, end, other, self.pullback.value(span.piece, span.t, other))

    def step(self, span: Span, end: State, a: Cotangent) -> tuple[State, Cotangent]:
        h, (a_x, a_other, a_slope) = span.h, a
        slope = self.slope or self.pullback.evaluate(span.piece, span.t_next, end[1])
        a_other = plus(a_other, self.pullback.pull(slope, plus(a_slope, a_x, h / 2)))
        del slope
        other = _other(span, end)
        self.slope = self.pullback.evaluate(span.piece, span.t, other)
        start = _undone(span, end, other, self.slope.value)
        before = [plus(a_x, a_other, 2), plus(None, a_other, -1), plus(plus(None, a_x, h / 2), a_other, h)]
        return start, before

    def begin(self, span: Span, start: State, a: Cotangent) -> Tensor | None:
        a_x, a_other, a_slope = a
        assert self.slope is not None
        slope, self.slope = self.slope, None
        return plus(plus(a_x, a_other), self.pullback.pull(slope, a_slope))


def _other(span: Span, end: State) -> Tensor:
    x_next, other_next, slope_next = end
    return combine(mirrored(other_next, x_next), -span.h, (1.0,), (slope_next,))


def _undone(span: Span, end: State, other: Tensor, slope: Tensor) -> State:
    return [combine(end[0], -span.h, (0.5, 0.5), (slope, end[2])), other, slope]


gradients.add("reversible_heun", ReversibleHeun())

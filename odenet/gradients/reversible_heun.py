"""Reversible Heun: each step undone and differentiated with one evaluation of F."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odenet.gradients.pullback import Evaluation, Pullback, plus
from odenet.gradients.registry import gradients
from odenet.gradients.reversal import Cotangent, State, Undo, Undone
from odenet.solvers.explicit import combine
from odenet.solvers.reversible import mirrored
from odenet.solvers.stepper import plus_scaled


class ReversibleHeun(Undone):
    """The steps of reversible Heun, undone:

        x̂ = 2x⁺ - x̂⁺ - h f̂⁺,   f̂ = F(t, x̂),   x = x⁺ - h/2 (f̂ + f̂⁺)

    and differentiated on the way; the evaluation that undoes a step is the one that the step before differentiates:

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


class _Undo(Undo):
    """Between the steps x is carried as x + h/2 f̂ with the h of the step after it, x̂ as it is, and f̂ not at all:
    f̂ = F(t, x̂) is evaluated where its graph is needed. `slope` is f̂ with its graph, where a step ends.
    """

    def __init__(self, pullback: Pullback):
        super().__init__(pullback)
        self.slope: Evaluation | None = None

    def reach(self, span: Any, after: Any, end: State) -> State:
        x, other, *_ = end
        self.slope = self.pullback.evaluate(span.piece, span.t_next, other)
        return [plus_scaled(x, self.slope.value, -after / 2), other, self.slope.value]

    @torch.no_grad()
    def invert(self, span: Any, end: State) -> State:
        other = _other(span, end)
        slope = self.pullback.value(span.piece, span.t, other)
        return [combine(end[0], -span.h, (0.5, 0.5), (slope, end[2])), other, slope]

    def step(self, span: Any, end: State, a: Cotangent) -> tuple[State, Cotangent]:
        h, (a_x, a_other, a_slope), slope = span.h, a, self.slope
        assert slope is not None
        self.slope = None
        a_other = plus(a_other, self.pullback.pull(slope, plus(a_slope, a_x, h / 2)))
        before = [plus(a_x, a_other, 2), plus(None, a_other, -1), plus(plus(None, a_x, h / 2), a_other, h)]
        return [plus_scaled(end[0], end[2], -h / 2), _other(span, end)], before

    def begin(self, span: Any, start: State, a: Cotangent) -> tuple[Tensor, Tensor | None]:
        (x, other), (a_x, a_other, a_slope) = start, a
        slope = self.pullback.evaluate(span.piece, span.t, other)
        x = plus_scaled(x, slope.value, -span.h / 2)
        return x, plus(plus(a_x, a_other), self.pullback.pull(slope, a_slope))


def _other(span: Any, end: State) -> Tensor:
    x_next, other_next, slope_next = end
    return combine(mirrored(other_next, x_next), -span.h, (1.0,), (slope_next,))


gradients.add("reversible_heun", ReversibleHeun())

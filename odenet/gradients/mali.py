"""Memory-efficient asynchronous leapfrog integrator: each step undone and differentiated with one evaluation of F."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odenet.gradients.pullback import Pullback, plus
from odenet.gradients.registry import gradients
from odenet.gradients.reversal import Cotangent, State, Undo, Undone
from odenet.solvers.reversible import mirrored
from odenet.solvers.stepper import plus_scaled


class MALI(Undone):
    """The steps of the asynchronous leapfrog, undone:

        x_½ = x⁺ - h/2 v⁺,   u = F(t + h/2, x_½),   v = 2u - v⁺,   x = x_½ - h/2 v

    and differentiated on the way with that one evaluation:

        w = a_v⁺ + h/2 a_x⁺,   (q, θ̄) += (∂F(x_½))ᵀ 2w,   a_x = a_x⁺ + q,   a_v = h/2 a_x - w

    Where v was made, v = F(t, x), a_x += (∂F(x)/∂x)ᵀ a_v. Exact up to the rounding of the reconstruction; one
    evaluation of F and one vector-Jacobian product a step (one evaluation more for a step with outputs inside).

    Options: max_drift and on_drift, see `Undone`.

    Reference:
        Zhuang et al. 2021, MALI: A memory efficient and reverse accurate integrator for Neural ODEs.
    """

    name = "mali"
    memory = "two states (and one for each knot of the weights), and one evaluation of F"
    reference = "Zhuang et al. 2021 (MALI)"

    def solvers(self) -> list[str]:
        return ["alf"]

    def undo(self, pullback: Pullback) -> _Undo:
        return _Undo(pullback)


class _Undo(Undo):
    @torch.no_grad()
    def invert(self, span: Any, end: State) -> State:
        half = _half(span, end)
        return _undone(span, end, half, self.pullback.value(span.piece, span.at(0.5), half))

    def step(self, span: Any, end: State, a: Cotangent) -> tuple[State, Cotangent]:
        h, (a_x, a_v) = span.h, a
        half = _half(span, end)
        u = self.pullback.evaluate(span.piece, span.at(0.5), half)
        start = _undone(span, end, half, u.value)
        w = plus(a_v, a_x, h / 2)
        a_x = plus(a_x, self.pullback.pull(u, plus(None, w, 2)))
        return start, [a_x, plus(plus(None, w, -1), a_x, h / 2)]

    def begin(self, span: Any, start: State, a: Cotangent) -> tuple[Tensor, Tensor | None]:
        a_x, a_v = a
        if a_v is None:
            return start[0], a_x
        v = self.pullback.evaluate(span.piece, span.t, start[0])
        return start[0], plus(a_x, self.pullback.pull(v, a_v))


def _half(span: Any, end: State) -> Tensor:
    return plus_scaled(end[0], end[1], -span.h / 2)


def _undone(span: Any, end: State, half: Tensor, u: Tensor) -> State:
    v = mirrored(end[1], u)
    return [plus_scaled(half, v, -span.h / 2), v]


gradients.add("mali", MALI())

"""Algebraically reversible methods of second order: the step can be undone exactly, up to rounding.

What is carried beside the state may be off by (-1)^n c, which nothing damps: the estimate of the error sees it, and so
does the step. It starts with the square of the first step and is renewed where steps change abruptly. So the first
step is small, by Hairer's rule for the order 1 of Euler's method, whose error the estimate is; and h is changed by the
square root of the factor that would do (`I_half`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from odenet.solvers.explicit import combine
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial

PARASITE = (
    "a step of {steps} multiplies part of its own error by about e^(h|Re λ|) for every decaying mode λ of F, however "
    "small h is; {instead}"
)


class AsynchronousLeapfrog(Stepper):
    """State x and velocity v, v_0 = F(t_0, x_0):

        x_½ = x + h/2 v,   u = F(t + h/2, x_½),   v⁺ = 2ηu + (1 - 2η)v,   x⁺ = x_½ + h/2 v⁺

    One evaluation of F a step; η = 1. The error estimate h (u - v) is of first order. Stable on the imaginary axis
    only: under x' = λx its second root is about -e^(-hλ), and what it makes of an error over depth depends on λ and on
    the length of the interval, not on h.

    Reference:
        Mutze 2013, An asynchronous leapfrog method; Zhuang et al. 2021, MALI.
    """

    name, order, error_order, first_order = "alf", 2, 2, 1
    controller = "I_half"
    per_sample = True
    reference = "Mutze 2013; Zhuang et al. 2021 (asynchronous leapfrog)"
    weakness = PARASITE.format(steps="alf", instead="use another solver with gradient='checkpoint'")

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """v_0 = F(t_0, x_0)."""
        return Memory((f(t, x) if first is None else first,))

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`."""
        (v,), h = memory.tensors, span.h
        half = combine(x, h, (0.5,), (v,))
        u = f(span.at(0.5), half)
        v_next = mirrored(v, u)
        x_next = combine(half, h, (0.5,), (v_next,))
        estimate = (u - v) * h if error else None
        return Trial(span, x, x_next, [u], estimate, given=memory, memory=Memory((v_next,)))

    def slope(self, f: Evaluate, trial: Trial) -> Tensor:
        """v."""
        return trial.given.tensors[0]

    def end_slope(self, f: Evaluate, trial: Trial) -> Tensor:
        """v⁺."""
        return trial.memory.tensors[0]


class ReversibleHeun(Stepper):
    """State x and a second one x̂ with its slope f̂, x̂_0 = x_0:

        x̂⁺ = 2x - x̂ + h f̂,   f̂⁺ = F(t + h, x̂⁺),   x⁺ = x + h/2 (f̂ + f̂⁺)

    One evaluation of F a step. The error estimate h/2 (f̂⁺ - f̂) is of first order. Stable on the imaginary axis
    only, with the second root of `alf`.

    Reference:
        Kidger et al. 2021, Efficient and Accurate Gradients for Neural SDEs.
    """

    name, order, error_order, first_order = "reversible_heun", 2, 2, 1
    controller = "I_half"
    per_sample = True
    reference = "Kidger et al. 2021"
    weakness = PARASITE.format(steps="reversible_heun", instead="use another solver with gradient='checkpoint'")

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """x̂_0 = x_0, f̂_0 = F(t_0, x_0)."""
        return Memory((x, f(t, x) if first is None else first))

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`."""
        (other, slope), h = memory.tensors, span.h
        other_next = combine(mirrored(other, x), h, (1.0,), (slope,))
        slope_next = f(span.t_next, other_next)
        x_next = combine(x, h, (0.5, 0.5), (slope, slope_next))
        estimate = (slope_next - slope) * (h / 2) if error else None
        kept = Memory((other_next, slope_next))
        return Trial(span, x, x_next, [slope_next], estimate, given=memory, memory=kept)

    def slope(self, f: Evaluate, trial: Trial) -> Tensor:
        """f̂."""
        return trial.given.tensors[1]

    def end_slope(self, f: Evaluate, trial: Trial) -> Tensor:
        """f̂⁺."""
        return trial.memory.tensors[1]


def mirrored(x: Tensor, center: Tensor) -> Tensor:
    """2 center - x, in one pass."""
    return torch.lerp(x, center, 2.0)


METHODS = [AsynchronousLeapfrog(), ReversibleHeun()]

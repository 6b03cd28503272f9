"""What the solver knows of each of its steps. To add one, subclass `Estimate` and register an instance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.regularisers.registry import regularisers
from odenet.solvers import Scheme
from odenet.solvers.explicit import ExplicitRungeKutta, combine
from odenet.solvers.registry import solvers
from odenet.solvers.stepper import Evaluate, Span, Stepper, Trial
from odenet.solvers.tableau import Tableau

ROUNDINGS = 100


class Step:
    """An accepted step from x to x⁺, as functions of which its estimates are computed.

    Args:
        stepper: the method.
        f: evaluates F.
        span: where the step went.
        x: state at its start.
        x_next: state at its end.
        show: the part of a state, or of a difference of states, that counts.
    """

    def __init__(
        self,
        stepper: Stepper,
        f: Evaluate,
        span: Span,
        x: Tensor,
        x_next: Tensor,
        show: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        self.stepper, self.f, self.span, self.x, self.x_next, self.show = stepper, f, span, x, x_next, show

    @cached_property
    def trial(self) -> Trial:
        """The step taken again, with its error estimate if the method has one."""
        return self.stepper.step(self.f, self.span, self.x, error=True)

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor]:
        """F(t, x) and F(t + h, x⁺)."""
        return self.f(self.span.t, self.x), self.f(self.span.t_next, self.x_next)

    def size(self, x: Tensor) -> Tensor:
        """|x| of each sample, shape (batch,)."""
        x = self.show(x)
        return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)


class Estimate:
    """A number for each sample and step; the regulariser is Σ_n |h_n| times it."""

    def check(self, scheme: Scheme) -> None:
        """Raise `InputError` if the scheme's solver gives no such number."""

    def __call__(self, step: Step) -> Tensor:
        """The number, shape (batch,)."""
        raise NotImplementedError


class LocalError(Estimate):
    """|E_n|, the estimated local error of a step: Σ_n |h_n| |E_n|.

    E is what the method's embedded pair says (of dopri8 the finer of its two estimates). Explicit Runge-Kutta methods
    without a pair: Euler's is held against Heun's, E = h (F(t + h, x⁺) - F(t, x))/2; others against two steps of half
    the size, E = (x_{h/2,h/2} - x⁺)/(1 - 2^-p), with 2s - 1 more evaluations of F for a method of s stages.

    Reference:
        Pal et al. 2021, Opening the Blackbox: Accelerating Neural Differential Equations by Regularizing Internal
        Solver Heuristics.
    """

    def check(self, scheme: Scheme) -> None:
        if not isinstance(solvers[scheme.solver], ExplicitRungeKutta):
            raise InputError(
                "regulariser 'local_error' takes the error estimate of an explicit Runge-Kutta method, which solver "
                f"{scheme.solver!r} is not; use 'stiffness' or 'kinetic', or solver='dopri5'"
            )

    def __call__(self, step: Step) -> Tensor:
        stepper, h = step.stepper, step.span.h
        assert isinstance(stepper, ExplicitRungeKutta)
        if stepper.tableau.stages == 1:
            first, end = step.slopes
            return step.size(end - first) * (abs(h) / 2)
        if stepper.tableau.b_error is not None:
            error = step.trial.error
            return step.size(error[0] if isinstance(error, tuple) else error)
        halved = step.x
        first: Tensor | None = step.trial.first
        for span in halves(step.span):
            halved, first = stepper.step(step.f, span, halved, first=first).x_next, None
        return step.size(halved - step.trial.x_next) / (1 - 2.0**-stepper.order)


class Stiffness(Estimate):
    """|k_i - k_j|/|X_i - X_j|, an estimate of |∂F/∂x| from two stages at the same time: Σ_n |h_n| of it.

    The stages are the last two whose abscissae agree, as those of rk4, dopri5, tsit5 and vern7. Methods without such a
    pair are asked for F at both ends of a step, |F(t + h, x⁺) - F(t, x)|/|x⁺ - x|. A step whose two states differ by
    less than 100 roundings counts as zero. Weighted with h (Pal et al. add without) it does not grow with the number of
    steps: for x' = λx it is |λ| times the length of depth.

    Reference:
        Pal et al. 2021, as for `local_error`; Hairer and Wanner 1996, Solving Ordinary Differential Equations II,
        section IV.2.
    """

    def __call__(self, step: Step) -> Tensor:
        tableau = step.stepper.tableau if isinstance(step.stepper, ExplicitRungeKutta) else None
        pair = None if tableau is None else same_abscissa(tableau)
        if tableau is None or pair is None:
            first, end = step.slopes
            rise, run = end - first, step.x_next - step.x
        else:
            i, j = pair
            k = step.trial.stages
            between = [a - b for a, b in zip(padded(tableau, i), padded(tableau, j), strict=True)]
            rise, run = k[i] - k[j], combine(None, step.span.h, between, k)
        rise, run = step.size(rise), step.size(run)
        told = run > ROUNDINGS * torch.finfo(run.dtype).eps * step.size(step.x_next)
        return torch.where(told, rise / torch.where(told, run, 1.0), 0.0)


def same_abscissa(tableau: Tableau) -> tuple[int, int] | None:
    """The last two stages, i after j, that are evaluated at the same time and not at the same state."""
    for i in reversed(range(tableau.stages)):
        for j in reversed(range(i)):
            if tableau.c[i] == tableau.c[j] and padded(tableau, i) != padded(tableau, j):
                return i, j
    return None


def padded(tableau: Tableau, i: int) -> tuple[float, ...]:
    """Row i of the tableau's coefficients, with its zeros."""
    row = tableau.a[i]
    return (*row, *(0.0,) * (tableau.stages - len(row)))


def halves(span: Span) -> tuple[Span, Span]:
    """The two halves of a step."""
    middle = span.at(0.5)
    return Span(span.piece, span.t, middle, span.h / 2), Span(span.piece, middle, span.t_next, span.h / 2)


regularisers.add("local_error", LocalError())
regularisers.add("stiffness", Stiffness())

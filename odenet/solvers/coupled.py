"""Reversible forms of methods that are not: the state is walked together with a second one that undoes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.reversible import PARASITE
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial, plus_scaled


class Coupled(Stepper):
    """An explicit Runge-Kutta method Ψ_h(t, x) = x + ψ_h(t, x), coupled to itself; z_0 = x_0:

        x⁺ = λx + (1 - λ)z + ψ_h(t, z),   z⁺ = z - ψ_{-h}(t + h, x⁺)

    of the order of the method, with the method's error estimate (that of ψ_h) and dense output. It takes twice the
    method's evaluations, less one where z = x is at hand and all samples share the step.

    Args:
        base: the method.
        coupling: λ in (0, 1]. Under x' = μx the pair has the method's root R(hμ) and a second one near λ/R(hμ), which
            grows where e^(h|Re μ|) > 1/λ: a coupling below 1 keeps decaying modes stable for h|Re μ| < -ln λ, but
            undoing N steps magnifies rounding by λ^-N.

    Reference:
        McCallum and Foster 2024, Efficient, Accurate and Stable Gradients for Neural ODEs.
    """

    lasting = True
    per_sample = True

    def __init__(self, base: ExplicitRungeKutta, coupling: float):
        self.base, self.coupling = base, coupling
        self.name, self.order, self.error_order = base.name, base.order, base.error_order
        self.weakness = PARASITE.format(
            steps="gradient='reversible'", instead=f"take a coupling below {coupling:g}, or gradient='checkpoint'"
        )
        self.reference = f"McCallum and Foster 2024, around {base.reference}"

    def check(self, x0: Tensor) -> None:
        """As the method's."""
        self.base.check(x0)

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """z_0 = x_0."""
        return Memory((x,))

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
        (z,) = memory.tensors
        shared = isinstance(span, Span)  # of samples with steps of their own some have left z = x and some have not
        at_x = z is x and shared
        there = self.base.step(f, span, z, first=first if at_x else None, error=error)
        x_next = torch.add(there.x_next, x - z, alpha=self.coupling)
        back = self.base.step(f, span.reversed(), x_next)
        trial = Trial(span, x, x_next, there.stages, there.error, given=memory, inner=there)
        trial.memory = Memory((z + (x_next - back.x_next),))
        if shared:
            trial.first, trial.end = there.first if at_x else first, back.first
        return trial

    def error_ratio(self, error: Any, weight: Tensor, norm: Callable[[Tensor], Any]) -> Any:
        """As the method's."""
        return self.base.error_ratio(error, weight, norm)

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """The method's dense output u of the step from z to z + ψ_h, moved to join x and x⁺:
        x(t) = u(t) + (x - z)(1 - (1 - λ)θ)."""
        (z,) = trial.given.tensors
        if trial.inner is None:
            trial.inner = self.base.step(f, trial.span, z)
        u = self.base.interpolate(f, trial.inner, t)
        return plus_scaled(u, trial.x - z, 1 - (1 - self.coupling) * trial.span.fraction(t))

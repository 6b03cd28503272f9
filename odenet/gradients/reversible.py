"""Any explicit Runge-Kutta method made reversible: steps undone stage by stage, two states in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.gradients.pullback import Pullback, plus
from odenet.gradients.registry import gradients
from odenet.gradients.reversal import Cotangent, ReversibleForm, State, Undo
from odenet.gradients.stages import explicit_runge_kutta, increment_back
from odenet.solvers.coupled import Coupled
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme

COUPLING = 0.999


class Reversible(ReversibleForm):
    """Walks depth with the solver coupled to itself (`odenet.solvers.coupled.Coupled`), and undoes its steps:

        z = z⁺ + ψ_{-h}(t + h, x⁺),   x = z + (x⁺ - z - ψ_h(t, z)) / λ

    The cotangents, with each vector-Jacobian product taken stage by stage on the way:

        a_x⁺ ← a_x⁺ - (∂ψ_{-h}(x⁺)/∂x)ᵀ a_z⁺,   a_z = a_z⁺ + (1 - λ)a_x⁺ + (∂ψ_h(z)/∂z)ᵀ a_x⁺,   a_x = λ a_x⁺

    Exact up to the rounding of the reconstruction, which grows like λ^-N over N steps; 4s - 2 evaluations of F and 2s
    vector-Jacobian products a step of s stages.

    The forward pass differs from the solver's own: twice the evaluations, same order.

    Options: coupling, λ in (0, 1], default 0.999; backward="autograd" for backprop through the same steps; max_drift
    and on_drift, see `Undone`.

    Reference:
        McCallum and Foster 2024, Efficient, Accurate and Stable Gradients for Neural ODEs.
    """

    name = "reversible"
    memory = "two states, the stages of one step, and one evaluation of F"
    reference = "McCallum and Foster 2024"
    own_options = ("coupling",)

    def solvers(self) -> list[str]:
        return explicit_runge_kutta()

    def check_own_options(self, options: Mapping[str, Any]) -> None:
        coupling = options.get("coupling", COUPLING)
        if not isinstance(coupling, int | float) or isinstance(coupling, bool) or not 0 < coupling <= 1:
            raise InputError(f"coupling must be a number above 0 and up to 1, got {coupling!r}")

    def form(self, scheme: Scheme) -> Coupled:
        base = solvers[scheme.solver]
        assert isinstance(base, ExplicitRungeKutta)
        return Coupled(base, scheme.gradient_options.get("coupling", COUPLING))

    def undo(self, pullback: Pullback) -> _Undo:
        return _Undo(pullback)


class _Undo(Undo):
    def __init__(self, pullback: Pullback):
        stepper = pullback.record.stepper
        assert isinstance(stepper, Coupled)
        super().__init__(pullback)
        self.coupling, self.tableau = stepper.coupling, stepper.base.tableau

    def invert(self, span: Any, end: State) -> State:
        return self._undone(span, end, None, None)[0]

    def step(self, span: Any, end: State, a: Cotangent) -> tuple[State, Cotangent]:
        a_x, a_z = a
        return self._undone(span, end, a_x, a_z)

    def begin(self, span: Any, start: State, a: Cotangent) -> tuple[Tensor, Tensor | None]:
        return start[0], plus(a[0], a[1])

    @torch.no_grad()
    def _undone(self, span: Any, end: State, a_x: Tensor | None, a_z: Tensor | None) -> tuple[State, Cotangent]:
        x_next, z_next = end
        back, pulled = increment_back(self.pullback, self.tableau, span.reversed(), x_next, plus(None, a_z, -1))
        a_x = plus(a_x, pulled)
        z = z_next - (x_next - back)
        there, pulled = increment_back(self.pullback, self.tableau, span, z, a_x)
        x = torch.add(z, x_next - there, alpha=1 / self.coupling)
        a_z = plus(plus(a_z, a_x, 1 - self.coupling), pulled)
        return [x, z], [plus(None, a_x, self.coupling), a_z]


gradients.add("reversible", Reversible())

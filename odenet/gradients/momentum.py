"""Momentum residual networks: layers undone one after the other, and no activation kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.gradients.pullback import Pullback, plus
from odenet.gradients.registry import gradients
from odenet.gradients.reversal import Cotangent, ReversibleForm, State, Undo
from odenet.solvers.momentum import ExactMomentum, Fixed, Momentum
from odenet.solvers.scheme import Scheme
from odenet.solvers.stepper import plus_scaled

GAMMA = 0.9


class MomentumGradient(ReversibleForm):
    """Walks depth by Euler's steps with momentum (`odenet.solvers.momentum.Momentum`), and undoes them:

        x = x⁺ - h v⁺,   v = (v⁺ - (1 - γ)F(t, x)) / γ

    The cotangents, with one vector-Jacobian product:

        c = a_v⁺ + h a_x⁺,   (q, θ̄) += (∂F(x))ᵀ (1 - γ)c,   a_x = a_x⁺ + q,   a_v = γc

    The division loses log2(1/γ) bits of v a step, and an error in v grows like γ^-N over N steps. With exact=True x and
    v are walked in fixed point and those bits are stored (at γ = 0.9 one int64 an element for 390 steps): the way back
    meets the same states to the last bit, however many steps there are.

    The forward pass differs from the solver's own: same evaluations, same order.

    Options: gamma, γ in (0, 1), default 0.9; exact, default False; backward="autograd" for backprop through the same
    steps; max_drift and on_drift, see `Undone`.

    Reference:
        Sander et al. 2021, Momentum Residual Neural Networks.
    """

    name = "momentum"
    memory = "two states, and one evaluation of F; with exact=True also their fixed-point forms and the bits dropped"
    reference = "Sander et al. 2021"
    own_options = ("gamma", "exact")
    against_drift = "exact=True in gradient_options undoes them to the last bit"

    def solvers(self) -> list[str]:
        return ["euler"]

    def check_own_options(self, options: Mapping[str, Any]) -> None:
        gamma, exact = options.get("gamma", GAMMA), options.get("exact", False)
        if not isinstance(gamma, int | float) or not 0 < gamma < 1:
            raise InputError(
                f"gamma must be a number between 0 and 1, got {gamma!r}; without momentum use gradient='checkpoint'"
            )
        if not isinstance(exact, bool):
            raise InputError(f"exact must be True or False, got {exact!r}")

    def form(self, scheme: Scheme) -> Momentum:
        options = scheme.gradient_options
        return (ExactMomentum if options.get("exact") else Momentum)(options.get("gamma", GAMMA))

    def undo(self, pullback: Pullback) -> _Undo:
        stepper = pullback.record.stepper
        return (_UndoExactly if isinstance(stepper, ExactMomentum) else _Undo)(pullback)


class _Undo(Undo):
    def __init__(self, pullback: Pullback):
        stepper = pullback.record.stepper
        assert isinstance(stepper, Momentum)
        super().__init__(pullback)
        self.stepper = stepper

    def invert(self, span: Any, end: State) -> State:
        x = self.position(span, end)
        return self.undone(span, end, x, self.pullback.value(span.piece, span.t, x))

    def step(self, span: Any, end: State, a: Cotangent) -> tuple[State, Cotangent]:
        k = self.pullback.evaluate(span.piece, span.t, self.position(span, end))
        start = self.undone(span, end, k.x.detach(), k.value)
        gamma, (a_x, a_v, *nothing) = self.stepper.gamma, a
        c = plus(a_v, a_x, span.h)
        a_x = plus(a_x, self.pullback.pull(k, plus(None, c, 1 - gamma)))
        return start, [a_x, plus(None, c, gamma), *nothing[: len(start) - 2]]

    def begin(self, span: Any, start: State, a: Cotangent) -> tuple[Tensor, Tensor | None]:
        return start[0], a[0]

    @torch.no_grad()
    def position(self, span: Any, end: State) -> Tensor:
        """x."""
        return plus_scaled(end[0], end[1], -span.h)

    @torch.no_grad()
    def undone(self, span: Any, end: State, x: Tensor, k: Tensor) -> State:
        """(x, v) from x and F(t, x)."""
        gamma = self.stepper.gamma
        return [x, torch.sub(end[1], k, alpha=1 - gamma) / gamma]


class _UndoExactly(_Undo):
    def position(self, span: Any, end: State) -> Tensor:
        return self._exact.undo_position(span, Fixed.of(tuple(end[1:])))[1]

    def undone(self, span: Any, end: State, x: Tensor, k: Tensor) -> State:
        fixed = Fixed.of(tuple(end[1:]))
        number = int(self.times[0]) if self.times else 0
        x_fixed, _ = self._exact.undo_position(span, fixed)
        return [x, *self._exact.undo_velocity(fixed, x_fixed, k, number).memory(number).tensors]

    @property
    def _exact(self) -> ExactMomentum:
        assert isinstance(self.stepper, ExactMomentum)
        return self.stepper


gradients.add("momentum", MomentumGradient())

"""Euler's steps with momentum: the form of a residual network whose layers can be undone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenet.solvers.fixed_point import Ratio, from_fixed, scaled, to_fixed
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial, plus_scaled


class Momentum(Stepper):
    """State x and velocity v, v_0 = 0:

        v⁺ = γv + (1 - γ)F(t, x),   x⁺ = x + h v⁺

    With h = 1 the momentum residual network; of first order for every γ, linear between the steps.

    Args:
        gamma: γ in (0, 1).

    Reference:
        Sander et al. 2021, Momentum Residual Neural Networks.
    """

    name, order = "euler", 1
    reference = "Sander et al. 2021"
    lasting = True
    per_sample = True

    def __init__(self, gamma: float):
        self.gamma = gamma

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """v_0 = 0."""
        return Memory((torch.zeros_like(x),))

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
        (v,), k = memory.tensors, f(span.t, x) if first is None else first
        v = torch.add(self.gamma * v, k, alpha=1 - self.gamma)
        x_next = plus_scaled(x, v, span.h)
        return Trial(span, x, x_next, [k], given=memory, memory=Memory((v,)), first=k)

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """x + (t - t_n) v⁺."""
        return plus_scaled(trial.x, trial.x_next - trial.x, trial.span.fraction(t))


class Fixed(NamedTuple):
    """What the exact form carries: v with its graph; x and v in fixed point; the bits that γv has dropped."""

    v: Tensor
    x_fixed: Tensor
    v_fixed: Tensor
    store: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensors: tuple[Tensor, ...]) -> Fixed:
        """From the tensors of a memory."""
        return cls(tensors[0], tensors[1], tensors[2], tensors[3:])

    def memory(self, number: int) -> Memory:
        """As the memory after `number` steps."""
        return Memory((self.v, self.x_fixed, self.v_fixed, *self.store), (number,))


class ExactMomentum(Momentum):
    """The same in fixed point (steps of 2^-44, |x| < 2^17), so that a step is undone to the last bit.

    Args:
        gamma: γ in (0, 1), taken as a fraction.
    """

    def __init__(self, gamma: float):
        self.ratio = Ratio(gamma)
        super().__init__(self.ratio.value)

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """v_0 = 0, and x_0 rounded."""
        fixed = to_fixed(x)
        return Fixed(torch.zeros_like(x), fixed, torch.zeros_like(fixed), ()).memory(0)

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
        given, (number,) = Fixed.of(memory.tensors), memory.times
        k = f(span.t, _Rounded.apply(x, from_fixed(given.x_fixed, x))) if first is None else first
        v_fixed, store = self.ratio.multiply(given.v_fixed, given.store, int(number))
        v_fixed = v_fixed + to_fixed((1 - self.gamma) * k.detach())
        x_fixed = given.x_fixed + scaled(v_fixed, span.h)
        v = _Rounded.apply(torch.add(self.gamma * given.v, k, alpha=1 - self.gamma), from_fixed(v_fixed, x))
        x_next = _Rounded.apply(plus_scaled(x, v, span.h), from_fixed(x_fixed, x))
        after = Fixed(v, x_fixed, v_fixed, store).memory(int(number) + 1)
        return Trial(span, x, x_next, [k], given=memory, memory=after, first=k)

    @torch.no_grad()
    def undo_position(self, span: Span, end: Fixed) -> tuple[Tensor, Tensor]:
        """x at the start of a step from what is carried at its end: in fixed point, and as a state."""
        x_fixed = end.x_fixed - scaled(end.v_fixed, span.h)
        return x_fixed, from_fixed(x_fixed, end.v)

    @torch.no_grad()
    def undo_velocity(self, end: Fixed, x_fixed: Tensor, k: Tensor, number: int) -> Fixed:
        """What is carried at the start of step `number`, from that at its end, x at its start, and F there."""
        v_fixed = end.v_fixed - to_fixed((1 - self.gamma) * k)
        v_fixed, store = self.ratio.divide(v_fixed, end.store, number)
        return Fixed(from_fixed(v_fixed, end.v), x_fixed, v_fixed, store)


class _Rounded(torch.autograd.Function):
    """A rounded value with the gradient of what was rounded; what was not finite stays so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rounded: Tensor) -> Tensor:
        return torch.where(x.isfinite(), rounded, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *a: Tensor) -> tuple[Tensor, None]:
        return a[0], None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, rounded: Any) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

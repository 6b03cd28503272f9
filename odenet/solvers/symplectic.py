"""Symplectic methods for second-order and Hamiltonian systems, whose energy error stays bounded.

The state is a pair (q, p): the two halves of x along its second axis (along its only one if it is 1-d), or a tuple of
two tensors. F gives (q', p') and has to be separable: q' = f(p) depends on p alone, p' = g(t, q) on t and q alone, as
for H = T(p) + V(q, t). Every evaluation of F gives one of the two halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Stepper, Trial, plus_scaled


class Partitioned(Stepper):
    """What the symplectic methods share: the two halves of a state."""

    partitioned = True
    per_sample = True

    def check(self, x0: Tensor) -> None:
        """Raise `InputError` if the state has no two halves."""
        axis = _axis(x0)
        if x0.dim() == 0 or x0.shape[axis] % 2:
            raise InputError(
                f"solver {self.name!r} takes the state as a pair (q, p), the two halves of its axis {axis}; a state of "
                f"shape {tuple(x0.shape)} has none. Give an even size there, or a tuple (q, p)"
            )

    def velocity(self, f: Evaluate, t: float, q: Tensor, p: Tensor) -> Tensor:
        """f(p), the first half of F."""
        return halves(f(t, join(q, p)))[0]

    def force(self, f: Evaluate, t: float, q: Tensor, p: Tensor) -> Tensor:
        """g(t, q), the second half of F."""
        return halves(f(t, join(q, p)))[1]


def _axis(x: Tensor) -> int:
    return min(1, max(0, x.dim() - 1))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(q, p)."""
    q, p = x.chunk(2, _axis(x))
    return q, p


def join(q: Tensor, p: Tensor) -> Tensor:
    """x = (q, p)."""
    return torch.cat([q, p], _axis(q))


class SymplecticEuler(Partitioned):
    """p⁺ = p + h g(t, q),   q⁺ = q + h f(p⁺). Two evaluations of F a step.

    Reference:
        de Vogelaere 1956; Hairer, Lubich and Wanner 2006, Geometric Numerical Integration, section VI.3.
    """

    name, order = "symplectic_euler", 1
    reference = "de Vogelaere 1956 (semi-implicit Euler)"

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
        q, p = halves(x)
        first = f(span.t, x) if first is None else first
        p_next = plus_scaled(p, halves(first)[1], span.h)
        stage = f(span.t_next, join(q, p_next))
        q_next = plus_scaled(q, halves(stage)[0], span.h)
        return Trial(span, x, join(q_next, p_next), [first, stage], first=first)


class Leapfrog(Partitioned):
    """Velocity Verlet, kick - drift - kick:

        p_½ = p + h/2 g(t, q),   q⁺ = q + h f(p_½),   p⁺ = p_½ + h/2 g(t + h, q⁺)

    The last kick's force is the next step's first: two evaluations of F a step.

    Reference:
        Verlet 1967; Hairer, Lubich and Wanner 2003, Geometric numerical integration illustrated by the Störmer-Verlet
        method.
    """

    name, order = "leapfrog", 2
    reference = "Verlet 1967 (velocity Verlet)"

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """g(t_0, q_0)."""
        return Memory((halves(f(t, x) if first is None else first)[1],))

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
        (force,), h = memory.tensors, span.h
        q, p = halves(x)
        p_half = plus_scaled(p, force, h / 2)
        velocity = self.velocity(f, span.at(0.5), q, p_half)
        q_next = plus_scaled(q, velocity, h)
        force_next = self.force(f, span.t_next, q_next, p_half)
        p_next = plus_scaled(p_half, force_next, h / 2)
        kept = Memory((force_next,))
        return Trial(span, x, join(q_next, p_next), [velocity, force_next], given=memory, memory=kept, first=first)


class Yoshida4(Partitioned):
    """Three leapfrogs of lengths w h, (1 - 2w) h, w h, each drift - kick - drift, with neighbouring drifts merged:

        q ← q + c_i h f(p),   p ← p + d_i h g(t + (c_1 + … + c_i) h, q),   w = 1 / (2 - 2^⅓)
        c = (w/2, (1-w)/2, (1-w)/2, w/2),   d = (w, 1 - 2w, w, 0)

    Forces are taken at times inside the step (0.68 h, 0.5 h, 0.32 h). The last velocity is the next step's first: six
    evaluations of F a step.

    Reference:
        Forest and Ruth 1990; Yoshida 1990, Construction of higher order symplectic integrators.
    """

    name, order = "yoshida4", 4
    reference = "Yoshida 1990"
    w = 1 / (2 - 2 ** (1 / 3))
    drifts = (w / 2, (1 - w) / 2, (1 - w) / 2, w / 2)
    kicks = (w, 1 - 2 * w, w)

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """f(p_0)."""
        return Memory((halves(f(t, x) if first is None else first)[0],))

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
        (velocity,), h, c = memory.tensors, span.h, 0.0
        q, p = halves(x)
        stages: list[Tensor] = []
        for drift, kick in zip(self.drifts, self.kicks, strict=False):
            q, c = plus_scaled(q, velocity, drift * h), c + drift
            force = self.force(f, span.at(c), q, p)
            p = plus_scaled(p, force, kick * h)
            velocity = self.velocity(f, span.at(c) if len(stages) < 4 else span.t_next, q, p)
            stages += [force, velocity]
        q = plus_scaled(q, velocity, self.drifts[-1] * h)
        return Trial(span, x, join(q, p), stages, given=memory, memory=Memory((velocity,)), first=first)


METHODS = [SymplecticEuler(), Leapfrog(), Yoshida4()]

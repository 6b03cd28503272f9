"""Who picks h: controllers that hold the local error at a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.registry import Registry
from odenet.solvers.stepper import Evaluate

DEFAULT_CONTROLLER = "auto"  # the method's own: `Stepper.controller`
MAX_STEPS = 10_000
NONFINITE_RETRIES = 10  # smaller steps that are tried after NaN or infinity
STRETCH = 1.01  # a step is made this much longer where it lands on a stop then
LEAST_ERROR = 1e-4  # what a controller takes a smaller error of a step before the last for
Norm = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Controller:
    """Picks the next step from the scaled error norms E of the last ones; a step is accepted if E <= 1.

        h_next = h · clip(safety · E_n^(-β_1/q) · E_{n-1}^(-β_2/q) · E_{n-2}^(-β_3/q), least, grow)

    with E falling like h^q. After a rejected step h_next = h · clip(safety · E^(-1/q), shrink, 1). Where nothing
    changes, steps settle at safety^(1/Σβ) of the one that would just be accepted.

    Attributes:
        exponents: (β_1, β_2, β_3); (1, 0, 0) is an I controller.
        safety: the factor where all E are 1.
        shrink: smallest factor.
        grow: largest factor.
        least: smallest factor after an accepted step; at 1 steps are made smaller only where one was rejected.

    Reference:
        Söderlind 2003, Digital filters in adaptive time-stepping; Hairer and Wanner 1996, Solving Ordinary
        Differential Equations II, section IV.2.
    """

    exponents: tuple[float, float, float] = (1.0, 0.0, 0.0)
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0
    least: float = 0.2

    def __post_init__(self) -> None:
        sizes = 0 < self.shrink < 1 <= self.grow and 0 < self.least <= 1
        if not (sizes and 0 < self.safety <= 1 and len(self.exponents) == 3):
            raise InputError(
                f"a controller needs 0 < shrink < 1 <= grow, 0 < least <= 1, 0 < safety <= 1, 3 exponents, got {self}"
            )

    def factor(self, errors: Sequence[float], order: int) -> float:
        """h_next / h after an accepted step.

        Args:
            errors: scaled errors of the last accepted steps, newest first.
            order: q.
        """
        factor = self.safety
        for error, exponent in zip(errors, self.exponents, strict=False):
            if exponent:
                factor *= max(error, LEAST) ** (-exponent / order)
        return min(self.grow, max(self.least, factor))

    def retry(self, error: float, order: int) -> float:
        """h_next / h after a rejected step with scaled error `error`."""
        return min(1.0, max(self.shrink, self.safety * error ** (-1 / order)))


LEAST = 1e-10
controllers: Registry[Controller] = Registry("controller")
controllers.add("I", Controller())
controllers.add("PI", Controller((0.7, -0.4, 0.0)))
controllers.add("PI3333", Controller((2 / 3, -1 / 3, 0.0)))
controllers.add("PI4020", Controller((3 / 5, -1 / 5, 0.0)))
controllers.add("PI6020", Controller((4 / 5, -1 / 5, 0.0), safety=0.92))  # settles at 0.87; docs/solvers.md
controllers.add("PI6020_long", Controller((4 / 5, -1 / 5, 0.0), safety=0.949))  # settles at 0.916, for bosh3
controllers.add("PI6020_short", Controller((4 / 5, -1 / 5, 0.0), safety=0.57))  # settles at 0.39, for kvaerno5
controllers.add("I_hold", Controller(least=1.0))  # the peers'; for adaptive_heun
controllers.add("I_half", Controller((0.5, 0.0, 0.0), safety=0.95))  # settles at 0.90; for alf and reversible_heun
controllers.add("PI8525", Controller((0.85, -0.25, 0.0), safety=0.87))  # settles at 0.79, for dopri8
controllers.add("H211PI", Controller((1 / 6, 1 / 6, 0.0)))
controllers.add("PID", Controller((1 / 18, 1 / 9, 1 / 18)))  # Söderlind's H312PID


def controller_of(value: Any) -> Controller:
    """A controller, from its name or itself.

    Raises:
        InputError: neither.
    """
    return value if isinstance(value, Controller) else controllers[value]


def scale(x: Tensor, rtol: Any, atol: Any, other: Tensor | None = None) -> Tensor:
    """atol + rtol max(|x|, |other|), element by element; tolerances are numbers or tensors that broadcast to x."""
    size = x.abs() if other is None else torch.maximum(x.abs(), other.abs())
    return size.mul_(rtol).add_(atol)


def rms(x: Tensor) -> float:
    """Root mean square over all elements, on the host."""
    if x.numel() == 0:
        return 0.0
    return float(torch.linalg.vector_norm(x)) / math.sqrt(x.numel())


@torch.no_grad()
def first_step(
    f: Evaluate,
    x: Tensor,
    k: Tensor,
    span: tuple[float, float],
    order: int,
    rtol: Any,
    atol: Any,
    norm: Norm = rms,
) -> float:
    """A size for the first step, positive, from the size of F and of its change; one evaluation of F.

    Args:
        f: evaluates F.
        x: initial state.
        k: F(t0, x).
        span: (t0, end of the first piece).
        order: order of the method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        norm: size of a scaled state.

    Reference:
        Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.4.
    """
    t, end = span
    length = abs(end - t)
    weight = scale(x, rtol, atol)
    d0, d1 = float(norm(x / weight)), float(norm(k / weight))
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, length)
    signed = math.copysign(h0, end - t)
    probe = end if h0 == length else t + signed
    slope = f(probe, torch.add(x, k, alpha=signed))
    d2 = float(norm((slope - k) / weight)) / h0
    if not math.isfinite(d2):
        return min(h0, length)
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** (1 / (order + 1))
    return min(100 * h0, h1, length)

"""Who picks h: a fixed grid, or a controller that holds the local error at a tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.stepper import Evaluate, Span

MAX_STEPS = 10_000


def fixed_spans(t0: float, t1: float, steps: int, knots: tuple[float, ...]) -> list[Span]:
    """The N spans of a uniform grid from t0 to t1, each on its piece of depth.

    Args:
        t0: start.
        t1: end; the last span ends there exactly.
        steps: N.
        knots: interior knots as fractions of the interval.

    Raises:
        InputError: a step would cross a knot.
    """
    h = (t1 - t0) / steps
    fractions = [n / steps for n in range(steps + 1)]
    missing = sorted(set(knots) - set(fractions))
    if missing:
        raise InputError(
            f"steps={steps} would step across a knot of the weights over depth (at {missing[0]:.6g} of the depth); "
            f"take a multiple of {len(knots) + 1} steps, or keep every k-th layer first"
        )
    times = [t0 + (t1 - t0) * fraction for fraction in fractions]
    times[-1] = t1
    spans, piece = [], 0
    for n in range(steps):
        if piece < len(knots) and fractions[n] == knots[piece]:
            piece += 1
        spans.append(Span(piece, times[n], times[n + 1], h))
    return spans


def pieces_of_depth(t0: float, t1: float, knots: tuple[float, ...]) -> list[tuple[float, float]]:
    """(start, end) of every piece of depth, from t0 to t1."""
    ends = [t0, *(t0 + (t1 - t0) * knot for knot in knots), t1]
    return list(pairwise(ends))


@dataclass(frozen=True)
class Controller:
    """Picks the next step from the scaled error norms E of the last ones; a step is accepted if E <= 1.

        h_next = h · clip(safety · E_n^(-α) · E_{n-1}^β),   α = 0.7/p, β = 0.4/p for PI, α = 1/p, β = 0 for I

    with p the order of the method.

    Attributes:
        proportional: β p; 0 is an I controller.
        integral: α p.
        safety: aim at this fraction of the step that would just be accepted.
        shrink: smallest factor.
        grow: largest factor.

    Reference:
        Hairer and Wanner 1996, Solving Ordinary Differential Equations II, section IV.2.
    """

    proportional: float = 0.0
    integral: float = 1.0
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def factor(self, error: float, previous: float | None, order: int) -> float:
        """h_next / h after a step with scaled error `error`, the last accepted one having had `previous`."""
        if error == 0:
            return self.grow
        factor = self.safety * error ** (-self.integral / order)
        if previous and self.proportional:
            factor *= previous ** (self.proportional / order)
        return min(self.grow, max(self.shrink, factor))


def scale(x: Tensor, rtol: float, atol: float, other: Tensor | None = None) -> Tensor:
    """atol + rtol max(|x|, |other|), element by element."""
    size = x.abs() if other is None else torch.maximum(x.abs(), other.abs())
    return size.mul_(rtol).add_(atol)


def rms(x: Tensor) -> float:
    """Root mean square over all elements, on the host."""
    if x.numel() == 0:
        return 0.0
    return float(torch.linalg.vector_norm(x)) / math.sqrt(x.numel())


@torch.no_grad()
def first_step(
    f: Evaluate, x: Tensor, k: Tensor, span: tuple[float, float], order: int, rtol: float, atol: float
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

    Reference:
        Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.4.
    """
    t, end = span
    length = abs(end - t)
    weight = scale(x, rtol, atol)
    d0, d1 = rms(x / weight), rms(k / weight)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, length)
    signed = math.copysign(h0, end - t)
    probe = end if h0 == length else t + signed
    slope = f(probe, torch.add(x, k, alpha=signed))
    d2 = rms((slope - k) / weight) / h0
    if not math.isfinite(d2):
        return min(h0, length)
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** (1 / (order + 1))
    return min(100 * h0, h1, length)

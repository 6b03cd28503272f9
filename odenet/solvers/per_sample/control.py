"""Who picks each sample's h, and who gives up on it: the rules of the shared loop, for vectors of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError, NonFiniteFunctionError, NonFiniteStateError, SolveError
from odenet.solvers.control import LEAST, Controller, scale
from odenet.solvers.failures import TOO_FAST
from odenet.solvers.stepper import Evaluate, Stepper, Trial


def rms_each(x: Tensor) -> Tensor:
    """Root mean square of every sample, (batch, ...) -> (batch,)."""
    count = x.numel() // max(1, x.shape[0])
    if count == 0:
        return torch.zeros(x.shape[0], dtype=x.dtype.to_real(), device=x.device)
    if x.dim() == 1:
        return x.abs()
    return torch.linalg.vector_norm(x.flatten(1), dim=1) / math.sqrt(count)


def norm_each(norm: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """A norm that a user gave, checked to give one number for each sample."""

    def checked(x: Tensor) -> Tensor:
        size = norm(x)
        if not isinstance(size, Tensor) or size.shape != x.shape[:1]:
            got = f"shape {tuple(size.shape)}" if isinstance(size, Tensor) else type(size).__name__
            raise InputError(
                f"with per_sample=True norm must give a number for each sample, {tuple(x.shape)} -> "
                f"{tuple(x.shape[:1])}, got {got}"
            )
        return size

    return checked


def on_host(x: Tensor) -> Tensor:
    """Numbers of each sample as float64 on the host: the one look at the device that a step costs."""
    return x.detach().cpu().double()


def factors(controller: Controller, errors: Sequence[Tensor], order: int) -> Tensor:
    """`Controller.factor` for each sample; an error that is not known yet counts as 1."""
    factor: Tensor | None = None
    for error, exponent in zip(errors, controller.exponents, strict=False):
        if exponent:
            part = power(error.clamp(min=LEAST), -exponent / order)
            factor = part if factor is None else factor.mul_(part)
    if factor is None:
        factor = torch.ones_like(errors[0])
    return factor.mul_(controller.safety).clamp_(controller.least, controller.grow)


def retries(controller: Controller, errors: Tensor, order: int) -> Tensor:
    """`Controller.retry` for each sample; the least factor where the error is not finite."""
    factor = power(errors.nan_to_num(math.inf), -1 / order).mul_(controller.safety)
    return factor.clamp_(controller.shrink, 1.0)


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent to a few units of the last place, for each element the same whatever others there are.

    `torch.pow` is not: it takes the last elements of a vector by another routine.
    """
    return x.log().mul_(exponent).exp_()


@torch.no_grad()
def first_steps(
    f: Evaluate,
    t: Tensor,
    end: Tensor,
    x: Tensor,
    k: Tensor,
    order: int,
    rtol: Any,
    atol: Any,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """`odenet.solvers.control.first_step` for each sample: positive sizes, float64 on the host.

    Args:
        f: evaluates F.
        t: starts, (batch,) float64 on the host.
        end: ends of the pieces of depth that begin there.
        x: initial states.
        k: F(t, x).
        order: order of the method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        norm: size of each scaled state.

    Reference:
        Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.4.
    """
    length, sign = (end - t).abs(), (end - t).sign()
    weight = scale(x, rtol, atol)
    d0, d1 = on_host(torch.stack([norm(x / weight), norm(k / weight)]))
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    h0 = torch.minimum(h0, length)
    probe = torch.where(h0 == length, end, t + sign * h0)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    signed = (sign * h0).to(x.device, x.dtype.to_real()).reshape(-1, *(1,) * (x.dim() - 1))
    slope = f(probe.to(x.device, wide), torch.addcmul(x, k, signed))
    d2 = on_host(norm((slope - k) / weight)) / h0
    large = torch.maximum(d1, d2)
    h1 = torch.where(large <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), power(0.01 / large, 1 / (order + 1)))
    return torch.where(d2.isfinite(), torch.minimum(torch.minimum(100 * h0, h1), length), h0)


def nonfinite_error(stepper: Stepper, trial: Trial, row: int, numbers: dict[str, Any]) -> SolveError:
    """Why a trial of one sample gave NaN or infinity: F did for a finite state, or the state itself overflowed."""
    for number, k in enumerate(trial.stages, start=1):
        if not bool(k[row].isfinite().all()):
            return NonFiniteFunctionError(
                f"F returned NaN or infinity in stage {number}", **numbers, advice=stepper.weakness
            )
    return NonFiniteStateError("the state overflowed", **numbers, advice=stepper.weakness or TOO_FAST)

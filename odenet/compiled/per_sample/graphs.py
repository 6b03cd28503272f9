"""Rounds of steps in which every row of a batch has its own t and h, and the way back over their record, as functions
of tensors that `torch.compile` makes one graph of each.

They are what `odenet.solvers.per_sample.loop` does step by step, as `odenet.compiled.graphs` is for a shared step:
numbers of the rows are (rows,) float64 tensors, and rows that are done take steps of length zero until the graph is
left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from odenet.compiled.graphs import (
    F64,
    Field,
    beside,
    combination,
    dense_weights,
    differentiated,
    error_ratio,
    once,
    stages_of,
)
from odenet.solvers.control import LEAST, LEAST_ERROR, NONFINITE_RETRIES, STRETCH, Controller
from odenet.solvers.tableau import Tableau

ROWS = ("t", "h", "error", "the error before", "nonfinite in a row", "accepted", "tries", "forced", "renewals")


def outputs_of(
    tableau: Tableau, span: tuple[Tensor, Tensor, Tensor], x: Tensor, k: Sequence[Tensor], times: Tensor
) -> Tensor:
    """x at `times` (outputs, rows) by the dense output of the steps from x, shape (outputs, *x.shape).

    For times outside of a step the state at its nearest end.
    """
    t, _, h = span
    theta = ((times - t) / torch.where(h == 0, 1.0, h)).clamp(0, 1)
    total = x.unsqueeze(0)
    for w, stage in zip(dense_weights(tableau, theta), k, strict=False):
        total = total + beside(h * w, x) * stage
    return total


def rms_each(x: Tensor) -> Tensor:
    """Root mean square of every row, in float64."""
    if x.dim() == 1:
        return x.abs().to(F64)
    return (torch.linalg.vector_norm(x.flatten(1), dim=1) / math.sqrt(x[0].numel())).to(F64)


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent, as `odenet.solvers.per_sample.control.power` has it."""
    return (x.log() * exponent).exp()


def rounds(tableau: Tableau, controller: Controller, order: int) -> Callable[..., tuple[Tensor, ...]]:
    """Rounds in which every row tries a step.

    Args:
        tableau: of an explicit Runge-Kutta method.
        controller: picks the steps.
        order: of its error estimate.

    Returns:
        A function of F; of (rtol, atol, h_min, h_max, budget of rounds, rows to go on with, length of the record, 1 or
        0 to record the states); of where the rows are, the numbers of `ROWS`, in one tensor; of where they go (end,
        direction, smallest step); of x and F(t, x) there; of F's arguments; and of the record (starts and ends of
        steps in one tensor (2, steps, rows); states; each row at its own number of accepted steps) with the numbers of
        the rows, the times of outputs and the place for them. It goes on while more rows than asked for are on their
        way, none is stuck and none's record is full, and returns the numbers of `ROWS`, x and F there.
    """
    s, fsal = tableau.stages, tableau.fsal
    exponents = [beta / order for beta in controller.exponents]

    def walk(
        F: Field, numbers: Tensor, at: Tensor, to: Tensor, x0: Tensor, k0: Tensor, args: Any,
        buffers: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        record, xs, rows, times, outputs = buffers

        def f(t: Tensor, x: Tensor) -> Tensor:
            return F(t.to(x.dtype), x, *args)

        def goes_on(go: Tensor, at: Tensor, x: Tensor, k: Tensor) -> Tensor:
            return go > 0

        def step(go: Tensor, at: Tensor, x: Tensor, k: Tensor) -> tuple[Tensor, ...]:
            rtol, atol, h_min, h_max, budget, fewest, capacity, every = numbers.unbind()
            end, sign, resolution = to.unbind()
            t, h, e1, e2, bad, n, tries, forced, renewals = at.unbind()
            on = t != end
            h = torch.minimum(torch.maximum(h, h_min), h_max)
            left = (end - t).abs()
            lands = (h * STRETCH >= left) & ((h >= left) | (left <= h_max + resolution))
            t_next = torch.where(lands, end, t + sign * h)
            signed = t_next - t
            span = (t, t_next, signed)
            stages, last = stages_of(f, tableau, s, span, x, k)
            size = beside(signed, x)
            x_next = last if fsal else combination(x, size, tableau.b, stages)
            weight = torch.maximum(x.abs(), x_next.abs()) * rtol.to(x.dtype) + atol.to(x.dtype)
            error = error_ratio(tableau, size, stages, weight, rms_each)
            finite = torch.isfinite(error)
            ok = on & finite & ((error <= 1) | (h <= h_min))
            place = n.to(torch.int64)
            record.index_put_((torch.zeros_like(place), place, rows), t)
            record.index_put_((torch.ones_like(place), place, rows), t_next)
            xs.index_put_(((n * every).to(torch.int64), rows), x)
            ok_x = ok.reshape(-1, *[1] * (x.dim() - 1))
            if times.shape[0]:
                inside = ok & (sign * (times - t) > 0) & (sign * (times - t_next) <= 0)
                shape = (*times.shape, *[1] * (x.dim() - 1))
                values = torch.where(
                    (times == t_next).reshape(shape), x_next, outputs_of(tableau, span, x, stages, times)
                )
                outputs.copy_(torch.where(inside.reshape(shape), values, outputs))
            length = signed.abs()
            factor = torch.full_like(error, controller.safety)
            for e, exponent in zip((error, e1, e2), exponents, strict=True):
                if exponent:
                    factor = factor * power(e.clamp(min=LEAST), -exponent)
            accept = length * factor.clamp(controller.least, controller.grow)
            accept = torch.where(lands, torch.maximum(h, accept), accept)
            retry = length * (controller.safety * power(error, -1 / order)).clamp(controller.shrink, 1.0)
            retry = torch.where(finite, retry, length * controller.shrink)
            h = torch.where(on, torch.where(ok, accept, retry), h)
            x = torch.where(ok_x, x_next, x)
            t = torch.where(ok, t_next, t)
            if fsal:
                k = torch.where(ok_x, stages[-1], k)
            else:
                begins = ok & (t != end)
                k = torch.where(begins.reshape(ok_x.shape), once(begins.any(), k, lambda: f(t, x)), k)
                renewals = renewals + begins.any().to(F64)
            n, tries, bad = n + ok.to(F64), tries + on.to(F64), torch.where(finite, 0.0, bad + on.to(F64))
            on = t != end
            small = torch.minimum(torch.minimum(torch.maximum(h, h_min), h_max), (end - t).abs()) <= resolution
            stuck = (n >= capacity) | (on & (small | (bad > NONFINITE_RETRIES) | (tries >= budget)))
            go = torch.where(stuck.to(F64).sum() > 0, 0.0, (on.to(F64).sum() > fewest).to(F64))
            e2, e1 = torch.where(ok, e1, e2), torch.where(ok, error.clamp(min=LEAST_ERROR), e1)
            forced = forced + (ok & (error > 1)).to(F64)
            return go, torch.stack([t, h, e1, e2, bad, n, tries, forced, renewals]), x, k

        start = (torch.ones((), dtype=F64, device=x0.device), at, x0, k0)
        _, at, x, k = while_loop(goes_on, step, tuple(part.clone() for part in start))
        return at, x, k

    return walk


def rounds_back(tableau: Tableau, names: Sequence[str]) -> Callable[..., tuple[Tensor, ...]]:
    """The way back over a record, every row from its own last step on:

        a_n = (∂Ψ_n/∂x_n)ᵀ a_{n+1},   θ̄ += (∂Ψ_n/∂θ)ᵀ a_{n+1},   x_{n+1} = Ψ_n(x_n)

    Args:
        tableau: of the method.
        names: of the parameters of F that are differentiated.

    Returns:
        A function of F, of the record (starts and ends of steps, states), of (accepted steps, number) of each row, of
        the largest of the former, of the cotangents of the rows' last states, θ̄ so far, the parameters, the
        differentiated and all arguments of F, and the times of outputs inside with their cotangents; it returns a_0
        and θ̄.
    """
    last = tableau.used

    def back(
        F: Any, record: tuple[Tensor, ...], rows: Tensor, count: Tensor, a: Tensor, given: tuple[Tensor, ...],
        leaves: tuple[Tensor, ...], args: tuple[Any, ...], places: tuple[int, ...], times: Tensor, cotangents: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ends, xs = record
        inside = times.shape[0] > 0
        field = differentiated(F, names, places, args)

        def goes_on(n: Tensor, a: Tensor, *gradients: Tensor) -> Tensor:
            return n > 0

        def step(n: Tensor, a: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
            accepted, number = rows.unbind()
            slot = torch.minimum(n, accepted).sub(1).clamp(min=0)
            t, t_next = ends[torch.zeros_like(slot), slot, number], ends[torch.ones_like(slot), slot, number]
            x = xs[slot, number]
            span = (t, t_next, t_next - t)
            on = (accepted >= n).reshape(-1, *[1] * (x.dim() - 1))

            def forward(x: Tensor, *leaves: Tensor) -> Any:
                f = lambda t, x: field(leaves, t, x)  # noqa: E731
                stages, _ = stages_of(f, tableau, tableau.stages if inside else last, span, x, None)
                x_next = combination(x, beside(span[2], x), tableau.b, stages)
                return (x_next, outputs_of(tableau, span, x, stages, times)) if inside else x_next

            pull: Any = torch.func.vjp(forward, x, *leaves)[1]
            zero = torch.zeros((), dtype=a.dtype, device=a.device)
            seed: Any = a
            if inside:
                shape = (*times.shape, *[1] * (x.dim() - 1))
                seed = seed + torch.where((times == t_next).reshape(shape), cotangents, zero).sum(0)
            seed = torch.where(on, seed, zero)
            if inside:
                due = (accepted >= n) & ((times - t) * span[2] > 0) & ((times - t_next) * span[2] < 0)
                seed = seed, torch.where(due.reshape(shape), cotangents, zero)
            pulled, *more = pull(seed)
            return n - 1, torch.where(on, pulled, a), *(g + m for g, m in zip(gradients, more, strict=True))

        _, a, *gradients = while_loop(goes_on, step, (count.clone(), a.clone(), *(g.clone() for g in given)))
        return a, *gradients

    return back

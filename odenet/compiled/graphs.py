"""A whole solve, and the way back over its record, as functions of tensors that `torch.compile` makes one graph of.

Times and sizes are 0-d float64 tensors here, and the loops are `while_loop`s: their bodies are one step, as in
`odenet.solvers.loop`, and write the record in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from odenet.compiled.lowering import THIN
from odenet.solvers.control import LEAST, LEAST_ERROR, NONFINITE_RETRIES, STRETCH, Controller
from odenet.solvers.tableau import Tableau

F64 = torch.float64
Field = Callable[[Tensor, Tensor], Tensor]


def laid_out(F: Any) -> Field:
    """F with its matrices column after column in memory, as x Aᵀ takes them; once for all the steps of a loop."""
    if not isinstance(F, nn.Module):
        return F
    turned = {name: p.t().contiguous().t() for name, p in F.named_parameters() if p.dim() == 2 and len(p) > THIN}
    return lambda t, x, *args: torch.func.functional_call(F, turned, (t, x, *args))


def combination(x: Tensor | None, h: Tensor, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """x + h Σ_i weights_i stages_i."""
    total = None
    for w, k in zip(weights, stages, strict=False):
        if w != 0:
            total = k * w if total is None else total + k * w
    assert total is not None
    return h * total if x is None else x + h * total


def beside(h: Tensor, x: Tensor) -> Tensor:
    """h, a number or one for each row, in a shape and precision that broadcasts against the state."""
    h = h.to(x.dtype)
    return h.reshape(*h.shape, *[1] * (x.dim() - 1)) if h.dim() else h


def stages_of(
    F: Field, tableau: Tableau, count: int, span: tuple[Tensor, Tensor, Tensor], x: Tensor, first: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """k_1 ... k_count of the step from x over (t, t_next, h), and the state at which the last was evaluated."""
    t, t_next, h = span
    size = beside(h, x)
    k = [F(t, x) if first is None else first]
    at = x
    for c, row in list(zip(tableau.c, tableau.a, strict=True))[1:count]:
        at = combination(x, size, row, k)
        k.append(F(t_next if c == 1 else t + c * h, at))
    return k, at


def dense_weights(tableau: Tableau, theta: Tensor) -> list[Tensor]:
    """For each stage its weight in the dense output at each θ."""
    assert tableau.dense is not None
    return [sum(p * theta ** (j + 1) for j, p in enumerate(row)) + 0 * theta for row in tableau.dense]


def outputs_of(
    tableau: Tableau, span: tuple[Tensor, Tensor, Tensor], x: Tensor, k: Sequence[Tensor], times: Tensor
) -> Tensor:
    """x at `times` by the dense output of the step from x, shape (len(times), *x.shape)."""
    t, _, h = span
    weights = dense_weights(tableau, (times - t) / h)
    shape = (-1, *[1] * x.dim())
    total = x.unsqueeze(0)
    for w, stage in zip(weights, k, strict=False):
        total = total + (h * w).to(x.dtype).reshape(shape) * stage
    return total


def error_ratio(
    tableau: Tableau, size: Tensor, stages: Sequence[Tensor], weight: Tensor, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """The error estimate in units of the tolerance, as `ExplicitRungeKutta.error_ratio` has it."""
    assert tableau.b_error is not None
    error = norm(combination(None, size, tableau.b_error, stages) / weight)
    if tableau.b_coarse is None:
        return error
    coarse = norm(combination(None, size, tableau.b_coarse, stages) / weight)
    return torch.where(error == 0, error, error * (error / torch.hypot(error, coarse / 10)))


def differentiated(F: Any, names: Sequence[str], places: Sequence[int], args: Sequence[Any]) -> Callable[..., Tensor]:
    """F as a function of what it is differentiated for.

    Args:
        F: the function.
        names: of its parameters among that.
        places: of its arguments among that.
        args: all its arguments.

    Returns:
        A function of (the parameters, then the arguments), t and x.
    """

    def field(leaves: Sequence[Tensor], t: Tensor, x: Tensor) -> Tensor:
        handed = list(args)
        for place, leaf in zip(places, leaves[len(names) :], strict=True):
            handed[place] = leaf
        if not names:
            return F(t.to(x.dtype), x, *handed)
        parameters = dict(zip(names, leaves[: len(names)], strict=True))
        return torch.func.functional_call(F, parameters, (t.to(x.dtype), x, *handed))

    return field


def rms(x: Tensor) -> Tensor:
    """Root mean square, in float64."""
    return torch.linalg.vector_norm(x).to(F64) / math.sqrt(x.numel())


def first_size(
    F: Field, x: Tensor, k: Tensor, at: tuple[Tensor, ...], order: int, rtol: Tensor, atol: Tensor
) -> Tensor:
    """The size of the first step, as `odenet.solvers.control.first_step` has it."""
    sizes, time, state = first_probe(x, k, at, rtol, atol)
    return size_by_probe(sizes, F(time, state), x, k, order, rtol, atol)


def first_probe(
    x: Tensor, k: Tensor, at: tuple[Tensor, ...], rtol: Tensor, atol: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(h0, d1 and the length of the interval), and the time and the state at which F shows how it changes."""
    t, end, sign = at
    length = (end - t).abs()
    weight = (atol + rtol * x.abs().to(F64)).to(x.dtype)
    d0, d1 = rms(x / weight), rms(k / weight)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    h0 = torch.minimum(h0, length)
    signed = sign * h0
    time = torch.where(h0 == length, end, t + signed)
    return torch.stack([h0, d1, length]), time, x + k * signed.to(x.dtype)


def size_by_probe(sizes: Tensor, slope: Tensor, x: Tensor, k: Tensor, order: int, rtol: Tensor, atol: Tensor) -> Tensor:
    """The size of the first step, from what `first_probe` found and F there."""
    h0, d1, length = sizes.unbind()
    weight = (atol + rtol * x.abs().to(F64)).to(x.dtype)
    d2 = rms((slope - k) / weight) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(
        largest <= 1e-15, torch.clamp(h0 * 1e-3, min=1e-6), (0.01 / largest.clamp(min=1e-300)) ** (1 / (order + 1))
    )
    found = torch.minimum(torch.minimum(100 * h0, h1), length)
    return torch.where(torch.isfinite(d2), found, h0)


def sizes_after(
    controller: Controller, order: int, step: tuple[Tensor, Tensor, Tensor], errors: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The next h if a step is accepted, and if it is not, as `Controller` has them.

    Args:
        controller: picks them.
        order: of its error estimate.
        step: h as it was wanted, as it was taken, and whether it landed.
        errors: of the step, of the accepted one before it and of that before.
    """
    (h, length, lands), (error, e1, e2) = step, errors
    b1, b2, b3 = (beta / order for beta in controller.exponents)
    accept = controller.safety * error.clamp(min=LEAST) ** (-b1) * e1 ** (-b2) * e2 ** (-b3)
    accept = length * accept.clamp(controller.least, controller.grow)
    accept = torch.where(lands, torch.maximum(h, accept), accept)
    retry = length * (controller.safety * error ** (-1 / order)).clamp(controller.shrink, 1.0)
    return accept, torch.where(torch.isfinite(error), retry, length * controller.shrink)


def once(wanted: Tensor, value: Tensor, find: Callable[[], Tensor]) -> Tensor:
    """What `find` gives if that is wanted, found then alone; else `value`. It may not use views of one tensor."""
    count = wanted.to(torch.int64)
    return while_loop(lambda n, v: n > 0, lambda n, v: (n - 1, find().clone()), (count, value.clone()))[1]


def adaptive(tableau: Tableau, controller: Controller, order: int, estimate: bool) -> Callable[..., tuple[Tensor, ...]]:
    """A solve whose steps hold the local error at the tolerance.

    Args:
        tableau: of an explicit Runge-Kutta method.
        controller: picks the step.
        order: of its error estimate.
        estimate: whether the size of the first step is to be estimated.

    Returns:
        A function of F; of (time to land on, sign, rtol, atol, h_min, h_max, smallest step, budget of steps, length of
        the record, 1 or 0 to record the states or not, end of the piece of depth); of where the walk is, (steps in the
        record, t, h or 0 to have it estimated, the last two errors, tries, forced, failures in a row); of x and F(t, x)
        there; of F's arguments; of the record (times, sizes, states) with the times of outputs inside and the place for
        them; and of whether F is another one from here on, so that F(t, x) is to be found. It returns where the walk is
        at the end of the record or where it was to land, and x and F there.
    """
    s, fsal = tableau.stages, tableau.fsal

    def solve(
        F: Field, numbers: Tensor, going: Tensor, x0: Tensor, k0: Tensor, args: Any, buffers: tuple[Tensor, ...],
        fresh: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        n, t, h, e1, e2, tries, forced, bad = going.unbind()
        ts, hs, xs, times, outputs = buffers

        field = laid_out(F)

        def f(t: Tensor, x: Tensor) -> Tensor:
            return field(t.to(x.dtype), x, *args)

        def estimated(going: Tensor, numbers: Tensor, x: Tensor, k: Tensor) -> Tensor:
            _, sign, rtol, atol, *_, end = numbers.unbind()
            return first_size(f, x, k, (going.unbind()[1], end, sign), order, rtol, atol)

        k = once(fresh, k0, lambda: f(going.unbind()[1], x0))
        if estimate:
            h = once(h <= 0, h, lambda: estimated(going, numbers, x0, k))
        bad = torch.where(torch.isfinite(rms(x0) + rms(k)), bad, 1e3)

        def goes_on(n: Tensor, t: Tensor, h: Tensor, e1: Tensor, e2: Tensor, tries: Tensor, forced: Tensor,
                    bad: Tensor, x: Tensor, k: Tensor) -> Tensor:  # fmt: skip
            t1, _, _, _, h_min, h_max, resolution, budget, capacity, *_ = numbers.unbind()
            step = torch.minimum(torch.minimum(torch.maximum(h, h_min), h_max), (t1 - t).abs())
            return (t != t1) & (n < capacity) & (bad <= NONFINITE_RETRIES) & (tries < budget) & (step > resolution)

        def step(n: Tensor, t: Tensor, h: Tensor, e1: Tensor, e2: Tensor, tries: Tensor, forced: Tensor,
                 bad: Tensor, x: Tensor, k: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
            t1, sign, rtol, atol, h_min, h_max, resolution, _, _, every, end = numbers.unbind()
            h = torch.minimum(torch.maximum(h, h_min), h_max)
            left = (t1 - t).abs()
            lands = (h >= left) | ((h * STRETCH >= left) & (left <= h_max + resolution))
            t_next = torch.where(lands, t1, t + sign * h)
            signed = t_next - t
            span = (t, t_next, signed)
            stages, at = stages_of(f, tableau, s, span, x, k)
            x_next = at if fsal else combination(x, signed.to(x.dtype), tableau.b, stages)
            weight = atol.to(x.dtype) + rtol.to(x.dtype) * torch.maximum(x.abs(), x_next.abs())
            error = error_ratio(tableau, signed.to(x.dtype), stages, weight, rms)
            finite = torch.isfinite(error)
            ok = finite & ((error <= 1) | (h <= h_min))
            slot = n.to(torch.int64).reshape(1)
            ts.index_copy_(0, slot, t.reshape(1))
            hs.index_copy_(0, slot, signed.reshape(1))
            xs.index_copy_(0, slot * every.to(torch.int64), x.unsqueeze(0))
            if times.shape[0]:
                inside = ok & (sign * (times - t) > 0) & (sign * (times - t_next) <= 0)
                values = torch.where(
                    (times == t_next).reshape(-1, *[1] * x.dim()), x_next, outputs_of(tableau, span, x, stages, times)
                )
                outputs.copy_(torch.where(inside.reshape(-1, *[1] * x.dim()), values, outputs))
            accept, retry = sizes_after(controller, order, (h, signed.abs(), lands), (error, e1, e2))
            x = torch.where(ok, x_next, x)
            t = torch.where(ok, t_next, t)
            k = torch.where(ok, stages[-1], k) if fsal else once(ok & (t != end), k, lambda: f(t, x))
            return (
                n + ok.to(F64),
                t,
                torch.where(ok, accept, retry),
                torch.where(ok, error.clamp(min=LEAST_ERROR), e1),
                torch.where(ok, e1, e2),
                tries + 1,
                forced + (ok & (error > 1)).to(F64),
                torch.where(finite, 0.0, bad + 1),
                x,
                k,
            )

        start = (n, t, h, e1, e2, tries, forced, bad, x0, k)
        n, *rest, x, k = while_loop(goes_on, step, tuple(part.clone() for part in start))
        return torch.stack([n, *rest]), x, k

    return solve


def fixed(tableau: Tableau) -> Callable[..., Tensor]:
    """A solve over a part of a given grid: a function of F, the grid, the sizes of its steps, the first step and the
    one after the last, x0, F's arguments, 1 or 0 to record the states or not, and the place for them; it returns the
    state at the end."""
    last = tableau.used

    def solve(
        F: Field, grid: Tensor, sizes: Tensor, first: Tensor, count: Tensor, x0: Tensor, args: Any, every: Tensor,
        xs: Tensor,
    ) -> Tensor:  # fmt: skip

        field = laid_out(F)

        def f(t: Tensor, x: Tensor) -> Tensor:
            return field(t.to(x.dtype), x, *args)

        def goes_on(n: Tensor, x: Tensor) -> Tensor:
            return n < count

        def step(n: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            slot = n.reshape(1)
            span = _at(grid, sizes, slot)
            xs.index_copy_(0, slot * every, x.unsqueeze(0))
            stages, _ = stages_of(f, tableau, last, span, x, None)
            return n + 1, combination(x, span[2].to(x.dtype), tableau.b, stages)

        return while_loop(goes_on, step, (first.clone(), x0.clone()))[1]

    return solve


def backward(tableau: Tableau, names: Sequence[str], dense: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The way back over a record, step by step:

        a_n = (∂Ψ_n/∂x_n)ᵀ a_{n+1},   θ̄ += (∂Ψ_n/∂θ)ᵀ a_{n+1},   x_{n+1} = Ψ_n(x_n)

    Args:
        tableau: of the method.
        names: of the parameters of F that are differentiated.
        dense: whether outputs may lie inside steps, and not at their ends only.

    Returns:
        A function of F, of the recorded grid, sizes and states, of the first step and the one after the last, the
        cotangent of the last state, θ̄ so far, the parameters, the differentiated and all arguments of F, and the times
        of outputs with their cotangents; it returns the cotangent of the first state and θ̄.
    """
    last = tableau.used

    def back(
        F: Any, grid: Tensor, sizes: Tensor, xs: Tensor, first: Tensor, count: Tensor, a: Tensor,
        given: tuple[Tensor, ...],
        leaves: tuple[Tensor, ...], args: tuple[Any, ...], places: tuple[int, ...], times: Tensor, cotangents: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        outputs = times.shape[0] > 0
        inside = outputs and dense
        field = differentiated(F, names, places, args)

        def goes_on(n: Tensor, a: Tensor, *gradients: Tensor) -> Tensor:
            return n > first

        def step(n: Tensor, a: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
            slot = (n - 1).reshape(1)
            span = _at(grid, sizes, slot)
            t, t_next, h = span
            x = xs.index_select(0, slot).squeeze(0)

            def forward(x: Tensor, *leaves: Tensor) -> Any:
                f = lambda t, x: field(leaves, t, x)  # noqa: E731
                stages, _ = stages_of(f, tableau, tableau.stages if inside else last, span, x, None)
                x_next = combination(x, h.to(x.dtype), tableau.b, stages)
                return (x_next, outputs_of(tableau, span, x, stages, times)) if inside else x_next

            pull: Any = torch.func.vjp(forward, x, *leaves)[1]
            seed: Any = a
            if outputs:
                shape = (-1, *[1] * x.dim())
                zero = torch.zeros((), dtype=a.dtype, device=a.device)
                seed = a + torch.where((times == t_next).reshape(shape), cotangents, zero).sum(0)
            if inside:
                due = ((times - t) * h > 0) & ((times - t_next) * h < 0)
                seed = seed, torch.where(due.reshape(shape), cotangents, zero)
            a, *more = pull(seed)
            return n - 1, a.clone(), *(g + m for g, m in zip(gradients, more, strict=True))

        _, a, *gradients = while_loop(goes_on, step, (count.clone(), a.clone(), *(g.clone() for g in given)))
        return a, *gradients

    return back


def _at(grid: Tensor, sizes: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(t, t_next, h) of a recorded step."""
    t, t_next = grid.index_select(0, torch.cat([slot, slot + 1])).unbind()
    return t, t_next, sizes.index_select(0, slot).squeeze(0)

"""`odeint_adjoint`: `odeint` with the continuous adjoint as its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from odenet.dropin.methods import SCIPY
from odenet.dropin.odeint import Call, callbacks_of, parameters_of
from odenet.dropin.options import Times, numerics, settling, tolerance
from odenet.errors import InputError
from odenet.solvers.states import Packing


def odeint_adjoint(
    func: Any,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, as `torchdiffeq.odeint_adjoint` is called.

    The gradient is that of the continuous adjoint: memory does not grow with the number of steps, and the gradient is
    as inexact as the tolerance; see `odenet.gradients.Adjoint`. There are no second derivatives.

    Args:
        func: as in `odeint`; need not be a module. The callbacks of the way back are its attributes
            `callback_step_adjoint`, `callback_accept_step_adjoint` and `callback_reject_step_adjoint`, called as
            (t, (0, y, adj_y, *adj_params), dt).
        y0: as in `odeint`.
        t: as in `odeint`.
        rtol: as in `odeint`.
        atol: as in `odeint`.
        method: as in `odeint`.
        options: as in `odeint`.
        event_fn: as in `odeint`.
        adjoint_rtol: relative tolerance of the way back, default rtol.
        adjoint_atol: absolute tolerance of the way back, default atol.
        adjoint_method: method of the way back, default `method`.
        adjoint_options: options of the way back, default `options` without its norm; `norm` may also be "seminorm", and
            a function gets the tuple (0, y, adj_y, *adj_params), with the tensors of a tuple y0 one by one.
        adjoint_params: the only tensors, beside y0 and t, that get a gradient; default all that func uses.

    Returns:
        As `odeint`.

    Raises:
        InputError: an argument that cannot be used.
        SolveError: the solve broke down.
    """
    call = Call(func, y0, t, rtol, atol, method, options, until_event=event_fn is not None)
    if adjoint_method is not None and adjoint_method != method and options and adjoint_options is None:
        raise InputError(
            f"options are those of method {call.method.name!r} and may not fit adjoint_method={adjoint_method!r}; give "
            "adjoint_options too"
        )
    same = adjoint_options is None
    inherited = {k: v for k, v in (options or {}).items() if k != "norm"} if same else adjoint_options or {}
    back = Times(call.times.t.detach().flip(0), call.times.host[::-1])
    way_back, solved = numerics(adjoint_method or method, inherited, func, y0, back, event_fn is not None)
    gradient: dict[str, Any] = {"norm": "full" if way_back.name != SCIPY else "seminorm"}
    if "norm" in inherited and way_back.name != SCIPY:
        gradient["norm"] = _norm(inherited["norm"], y0)
    if adjoint_params is None and callable(gradient["norm"]):
        adjoint_params = parameters_of(func)
    if adjoint_params is not None:
        gradient["adjoint_params"] = tuple(adjoint_params)
    gradient["adjoint_solver"] = solved.pop("solver")
    if way_back.adaptive:
        solved = {"h_min": 0.0, "h_max": math.inf} | solved
        for name, value, default in (("rtol", adjoint_rtol, rtol), ("atol", adjoint_atol, atol)):
            if value is not None or not call.method.adaptive:
                gradient[f"adjoint_{name}"] = tolerance(name, default if value is None else value, y0)
    elif same and way_back == call.method:
        solved = {k: v for k, v in solved.items() if k not in ("steps", "step_size", "grid")}
    gradient["adjoint_options"] = settling(solved, call.rtol, call.atol)
    if call.method.backend == "torchdiffeq":  # walks back by its own adjoint, with its own options
        own = {"norm", "adjoint_rtol", "adjoint_atol"}
        own |= {"adjoint_solver"} if way_back.backend == "torchdiffeq" else set()
        gradient = {k: v for k, v in gradient.items() if k in own}
    backward = callbacks_of(func, "_adjoint", way_back, y0)
    return call.answer(call.scheme("adjoint", gradient_options=gradient), event_fn, backward)


def _norm(norm: Any, y0: Any) -> Any:
    """A norm of torchdiffeq's adjoint state (t, y, adj_y, *adj_params) as one of odenet's (x, a, *θ̄)."""
    if not callable(norm):
        return norm
    packing = None if isinstance(y0, Tensor) else Packing(y0)

    def of_parts(parts: tuple[Tensor, ...]) -> Any:
        x, a, *params = parts
        pair = (x, a) if packing is None else (*packing.unpack(x), *packing.unpack(a))
        return norm((torch.zeros((), dtype=a.dtype, device=a.device), *pair, *params))

    return of_parts

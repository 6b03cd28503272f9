"""`odeint`: an initial value problem in torchdiffeq's words, by odenet's solvers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from odenet.depth import Constant
from odenet.dropin.methods import SCIPY, Method
from odenet.dropin.options import Times, numerics, settling, tolerance
from odenet.errors import InputError, StepBudgetError
from odenet.run import run
from odenet.solve import make_scheme
from odenet.solvers import Event, Scheme
from odenet.solvers.callbacks import Callback, Callbacks, ignore

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")
WINDOWS, MAX_EVENT_STEPS = 64, 100_000


def odeint(
    func: Any,
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, as `torchdiffeq.odeint` is called.

    Gradients are those of the steps that were taken, for y0, t, and every tensor that func uses.

    Args:
        func: called as func(t, y), t a 0-d tensor; a function or module. Its attributes `callback_step`,
            `callback_accept_step` and `callback_reject_step` are called as (t0, y0, dt), dt positive.
        y0: a tensor of any shape, or a tuple of tensors, which func then takes and returns.
        t: (n,) times, strictly increasing or decreasing, the first one that of y0.
        rtol: relative tolerance; for a tuple y0 also one for each of its tensors. What y0's precision cannot resolve is
            raised to what it can.
        atol: absolute tolerance, likewise.
        method: a name of torchdiffeq's ("rk4" is the 3/8 rule), or of any solver of odenet's; None for "dopri5".
        options: torchdiffeq's options of the method. A fixed-step method needs `step_size`, `grid_constructor`, or more
            than two times in t, which are then the ends of its steps.
        event_fn: g(t, y); the solve goes on from t[0] in the direction of t[1] until an element of g changes its sign.

    Returns:
        y at the times of t, (n, *y0.shape), or a tuple of such tensors. With `event_fn` the time of the event, and y at
        t[0] and there, (2, *y0.shape), both differentiable.

    Raises:
        InputError: an argument that cannot be used.
        SolveError: the solve broke down.
    """
    call = Call(func, y0, t, rtol, atol, method, options, until_event=event_fn is not None)
    return call.answer(call.scheme("autograd"), event_fn)


class Call:
    """One call in torchdiffeq's words, checked.

    The arguments are those of `odeint`.

    Attributes:
        times: of the call.
        method: what runs.
        numerics: fields of its scheme.
    """

    def __init__(
        self,
        func: Any,
        y0: Any,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: Mapping[str, Any] | None,
        until_event: bool = False,
    ):
        _check_state(y0)
        self.func, self.y0, self.times = func, y0, Times.of(t)
        if until_event and len(self.times.host) != 2:
            raise InputError(f"with event_fn, t must be a start and a direction, got {len(self.times.host)} times")
        self.method, self.numerics = numerics(method, options, func, y0, self.times, until_event)
        self.rtol, self.atol = tolerance("rtol", rtol, y0), tolerance("atol", atol, y0)
        self.norm = (options or {}).get("norm", None if isinstance(y0, Tensor) else mixed_norm)
        self.function = Function(func, y0)
        if until_event and "max_num_steps" not in (options or {}):
            self.numerics["max_steps"] = MAX_EVENT_STEPS
        self.callbacks = callbacks_of(func, "", self.method, y0)

    def scheme(self, gradient: str, **more: Any) -> Scheme:
        """The scheme of the call with a gradient method."""
        solved = dict(self.numerics)
        if self.method.adaptive:
            solved |= {"rtol": self.rtol, "atol": self.atol}
            solved |= {} if self.method.name == SCIPY else {"norm": self.norm}
        else:
            solved = settling(solved, self.rtol, self.atol)
        return make_scheme(solved.pop("solver"), gradient, solved.pop("backend"), **solved, **more)

    def answer(
        self, scheme: Scheme, event_fn: Callable[..., Tensor] | None, backward_callbacks: Callbacks | None = None
    ) -> Any:
        """What `odeint` returns."""
        go = partial(run, Constant(self.function), callbacks=self.callbacks, backward_callbacks=backward_callbacks)
        if event_fn is None:
            return go(self.y0, self.times.interval, scheme, self.times.t).ys
        return self._until_event(go, scheme, event_fn)

    def _until_event(self, go: Callable[..., Any], scheme: Scheme, event_fn: Callable[..., Tensor]) -> Any:
        """Windows of time, each twice as long as the one before, until the event happens."""
        (t0, _), start, y, left = self.times.interval, self.times.host[0], self.y0, scheme.max_steps
        length = self.times.host[1] - start
        if scheme.step_size is not None:
            length = math.copysign(scheme.step_size * math.ceil(abs(length) / scheme.step_size), length)
        h = nfe = 0
        for window in range(WINDOWS):
            end = start + length
            solution = go(y, (start if window else t0, end), scheme, event=Event(event_fn))
            if solution.status == "event":
                stacked = [torch.stack(pair) for pair in zip(_leaves(self.y0), _leaves(solution.last), strict=True)]
                ys = stacked[0] if isinstance(self.y0, Tensor) else tuple(stacked)
                return solution.events[0].ts[-1].to(self.times.t), ys
            y, start, length, stats = solution.last, end, 2 * length, solution.stats
            left, nfe = left - stats.accepted - stats.rejected, nfe + stats.nfe
            h = max(stats.h[-2:], default=0.0)
            if left < 1:
                break
            if scheme.adaptive:
                scheme = scheme.but(max_steps=left, first_step=h or None)
        raise StepBudgetError(
            "no event happened",
            t=start,
            h=h,
            nfe=nfe,
            advice="does event_fn change its sign?",
        )


class Function:
    """func as torchdiffeq calls it: its value may be of another dtype, or of a shape that becomes y's.

    Args:
        func: the right-hand side.
        y0: a state.
    """

    def __init__(self, func: Any, y0: Any):
        if not callable(func):
            raise InputError(f"func must be callable as func(t, y), got {type(func).__name__}")
        self.func = func
        self.many = not isinstance(y0, Tensor)
        self.shapes = [(leaf.shape, leaf.dtype) for leaf in _leaves(y0)]

    def __call__(self, t: Tensor, y: Any) -> Any:
        k = self.func(t, y)
        if not self.many:
            return _fit(k, *self.shapes[0])
        if not isinstance(k, Sequence) or len(k) != len(self.shapes):
            return k
        return tuple(_fit(part, *shape) for part, shape in zip(k, self.shapes, strict=True))


def _fit(k: Any, shape: torch.Size, dtype: torch.dtype) -> Any:
    if not isinstance(k, Tensor):
        return k
    if k.shape != shape and k.numel() == math.prod(shape):
        k = k.reshape(shape)
    return k if k.dtype == dtype or (k.is_complex() and not dtype.is_complex) else k.to(dtype)


def mixed_norm(y: Sequence[Tensor]) -> Tensor:
    """The norm of a tuple: the largest of the root mean squares of its tensors."""
    return torch.stack([torch.linalg.vector_norm(part) / math.sqrt(max(1, part.numel())) for part in y]).max()


def callbacks_of(func: Any, suffix: str, method: Method, y0: Any) -> Callbacks | None:
    """The callbacks among func's attributes, or None if there are none.

    Args:
        func: the right-hand side.
        suffix: "" or "_adjoint".
        method: what runs; SciPy reports no steps, and a fixed-step method accepts all.
        y0: a state, for the device of the times.
    """
    given = {name: getattr(func, name + suffix) for name in CALLBACKS if callable(getattr(func, name + suffix, None))}
    able = () if method.backend != "native" else CALLBACKS if method.adaptive else CALLBACKS[:1]
    unable = [name + suffix for name in given if name not in able]
    if unable:
        warnings.warn(f"method {method.name!r} does not call {', '.join(unable)}", stacklevel=4)
    if len(given) == len(unable):
        return None
    device = _leaves(y0)[0].device

    def told(name: str) -> Callback:
        callback = given[name]
        wide = torch.float32 if device.type == "mps" else torch.float64

        def tell(t: float, x: Any, h: float) -> None:
            callback(*(torch.tensor(v, dtype=wide, device=device) if isinstance(v, float) else v for v in (t, x, h)))

        return tell

    return Callbacks(*(told(name) if name in given and name in able else ignore for name in CALLBACKS))


def odeint_dense(
    func: Any,
    y0: Any,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """The solution between t0 and t1 as a function of time, as `torchdiffeq.odeint_dense` is called.

    Args:
        func: called as func(t, y).
        y0: a tensor, or a tuple of tensors.
        t0: 0-d tensor, time of y0.
        t1: 0-d tensor, the other end.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: any native method; None for "dopri5".
        options: of the method.

    Returns:
        t -> y(t), of y0's shape, by the method's dense output; differentiable.
    """
    call = Call(func, y0, torch.stack([torch.as_tensor(t0), torch.as_tensor(t1)]), rtol, atol, method, options)
    return run(Constant(call.function), y0, call.times.interval, call.scheme("autograd"), dense=True)


def _check_state(y0: Any) -> None:
    if not isinstance(y0, Tensor | tuple | list) or not all(isinstance(leaf, Tensor) for leaf in _leaves(y0)):
        raise InputError(f"y0 must be a tensor or a tuple of tensors, got {type(y0).__name__}")
    if not _leaves(y0):
        raise InputError("y0 must hold at least one tensor, got an empty tuple")
    for leaf in _leaves(y0):
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise InputError(f"y0 must be of a floating-point or complex dtype, got {leaf.dtype}; use y0.float()")


def _leaves(y: Any) -> list[Tensor]:
    return [y] if isinstance(y, Tensor) else list(y)


def parameters_of(func: Any) -> tuple[Tensor, ...]:
    """The parameters of a module; none of a function."""
    return tuple(func.parameters()) if isinstance(func, nn.Module) else ()

"""`odenet.solve`: an initial value problem, any solver, any gradient, any backend."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from operator import index
from types import NoneType
from typing import Any

from torch import Tensor

from odenet.depth import weights_over_depth
from odenet.errors import InputError
from odenet.gradients import gradients
from odenet.gradients.per_sample import check_per_sample
from odenet.run import run
from odenet.solvers import Scheme, Solution
from odenet.solvers.control import MAX_STEPS, Controller, Norm
from odenet.solvers.scheme import DEFAULT_CONTROLLER, check_options

PLAIN, MOST_SCHEMES = (str, int, float, bool, NoneType, Controller), 256
_schemes: dict[Any, Scheme] = {}  # of the same words the same scheme, which small solves do not wait for again


def make_scheme(
    solver: str, gradient: str | None, backend: str, *, default_gradient: str = "autograd", **numerics: Any
) -> Scheme:
    """A checked scheme.

    Args:
        solver: name of the solver.
        gradient: name of the gradient method; None for `default_gradient`, or "autograd" with torchdiffeq.
        backend: name of the backend.
        default_gradient: what None means with the native backend.
        **numerics: the other fields of `Scheme`; of the options, None means none.

    Raises:
        InputError: a value that cannot be used, or two that cannot be used together.
    """
    words = (solver, gradient, backend, default_gradient, *numerics.values())
    key = (words, *map(type, words), *numerics)
    try:
        return _schemes[key]
    except (KeyError, TypeError):  # of which the latter stands for a word that cannot be remembered
        pass
    scheme = _checked(solver, gradient, backend, default_gradient, numerics)
    if all(isinstance(word, PLAIN) or (type(word) is tuple and not word) for word in words):
        if len(_schemes) >= MOST_SCHEMES:
            _schemes.clear()
        _schemes[key] = scheme
    return scheme


def _checked(
    solver: str, gradient: str | None, backend: str, default_gradient: str, numerics: dict[str, Any]
) -> Scheme:
    if not isinstance(numerics.get("steps"), bool | None):
        with contextlib.suppress(TypeError):
            numerics["steps"] = index(numerics["steps"])  # an integer of NumPy or torch is one too
    for name in ("options", "gradient_options"):
        if not numerics.get(name):
            numerics.pop(name, None)
    if gradient is None:
        gradient = default_gradient if backend == "native" else "autograd"
    check_options("argument", numerics, [entry.name for entry in fields(Scheme)])
    method = gradients[gradient]
    if backend == "native" and "native" not in method.backends:
        backend = method.backends[0]
    scheme = Scheme(solver, gradient=gradient, backend=backend, **numerics)
    if backend not in method.backends:
        works = ", ".join(name for name, other in gradients.items() if backend in other.backends)
        raise InputError(
            f"gradient={gradient!r} walks the steps of backend={method.backends[0]!r}; "
            f"with backend={backend!r} use one of: {works}"
        )
    method.check(scheme, scheme.gradient_options)
    if scheme.per_sample:
        check_per_sample(scheme)
    return scheme


def solve(
    F: Any,
    x0: Any,
    t_span: Sequence[Any] = (0.0, 1.0),
    *,
    solver: str = "dopri5",
    rtol: float | Tensor | None = None,
    atol: float | Tensor | None = None,
    steps: int | None = None,
    args: tuple[Any, ...] = (),
    ts: Sequence[float] | Tensor | None = None,
    per_sample: bool = False,
    per_sample_args: bool | Sequence[int] | None = None,
    dense: bool = False,
    event: Any = None,
    gradient: str = "autograd",
    backend: str = "native",
    weights: Any = "tied",
    step_size: float | None = None,
    grid: Sequence[float] | Tensor | None = None,
    first_step: float | None = None,
    controller: str | Controller = DEFAULT_CONTROLLER,
    h_min: float = 0.0,
    h_max: float = math.inf,
    norm: Norm | None = None,
    stops: Sequence[float] | Tensor = (),
    jumps: Sequence[float] | Tensor = (),
    on_failure: str = "raise",
    max_steps: int = MAX_STEPS,
    max_nfe: int | None = None,
    compile: str | bool = "auto",
    options: Mapping[str, Any] | None = None,
    gradient_options: Mapping[str, Any] | None = None,
) -> Solution:
    """Solve dx/dt = F(t, x, *args), x(t0) = x0.

    Args:
        F: function or module called as F(t, x, *args), t a 0-d tensor, x and the result (batch, ...).
        x0: (batch, ...) initial state, real or complex floating point; or a tuple, list or dict of such tensors, of any
            shapes, which F then takes and returns.
        t_span: (t0, t1); t1 < t0 solves backwards. Tensors that require a gradient get it.
        solver: name of the method, see `odenet.list_solvers`.
        rtol: relative tolerance per element, RMS over the state; default 1e-3. Adaptive solves only. A number, a tensor
            that broadcasts to x0, or a tree of them like x0.
        atol: absolute tolerance per element, likewise; default 1e-3. Adaptive solves only.
        steps: number of equal steps; None to let an adaptive method pick its own.
        args: handed to F after (t, x); tensors in it are differentiable.
        ts: times of the answer, from t0 towards t1; None for t1 alone. Tensors that require a gradient get it.
        per_sample: give each sample (row of x0) its own steps, statistics and, if wanted, interval: t0 and t1 may then
            be tensors (batch,) and ts (times, batch). F is called with t of shape (rows,) and x (rows, ...), for the
            samples that need it: a sample that is done is not evaluated any more. `steps` are N equal ones of each
            sample's own interval.
        per_sample_args: with `per_sample`, which of `args` hold a row for each sample, as indices such as (0,), to be
            handed to F with the rows of x; True for all. Has to be said if a tensor in `args` could be one.
        dense: make the solution callable at any time.
        event: an `odenet.Event`, a function g(t, x, *args), or a list of them; `events` of the solution has what
            happened, with differentiable times. The solve ends at a terminal event, whose state is its last.
        gradient: "autograd", "checkpoint" or "adjoint".
        backend: "native", "torchdiffeq" or "scipy".
        weights: weights over depth, as in `ResNet`.
        step_size: h of a fixed-step method, instead of `steps`; the last step before t1, a knot, a stop or a jump may
            be shorter.
        grid: ends of the steps of a fixed-step method, from t0 to t1, instead of `steps`; with `per_sample` also a
            tensor (steps + 1, batch).
        first_step: size of the first adaptive step; None to have it estimated.
        controller: how adaptive steps are picked: "I", "PI", "PI3333", "PI4020", "PI6020", "PI8525", "H211PI", "PID",
            an `odenet.solvers.Controller`, or "auto" for the one that was found best for the method.
        h_min: smallest adaptive step; at that size a step is accepted whatever its error (`stats.forced` counts them).
        h_max: largest adaptive step.
        norm: size of a scaled state in an adaptive solve: tensor -> number or 0-d tensor; None for RMS.
        stops: times at which a step has to end.
        jumps: times at which F is discontinuous in t. A step ends there, the method starts anew, and F is shown the
            nearest time before for the step that ends there and the nearest one after for the step that begins.
        on_failure: "raise"; "status" returns the outputs that were reached and the last accepted state, with the
            reason in `status` and `error`.
        max_steps: budget of accepted plus rejected steps.
        max_nfe: budget of evaluations of F; None for no limit of its own.
        compile: True to walk explicit Runge-Kutta steps, fixed or adaptive, as one compiled graph, with its exact
            gradient as another; where that cannot be, a warning says why and the walk is eager. "auto" does so for
            small states after 2,000 solves of the same F. False never does.
        options: handed to torchdiffeq's solver.
        gradient_options: handed to the gradient method.

    Returns:
        A `Solution` with `ys` (len(ts), *x0.shape), `ts`, `stats`, `status` and `events`. With `per_sample`, `status`
        is a list with an entry for each sample, `errors` a dict, and `ended` has the time of each sample's `last`.

    Raises:
        InputError: an argument that cannot be used.
        ResidualError: F does not keep x's shape, dtype or device.
        SolveError: the solve broke down.
        GradientError: a gradient that cannot be delivered.
    """
    if not isinstance(args, tuple):
        raise InputError(f"args must be a tuple, got {type(args).__name__}; a single argument is args=(value,)")
    scheme = make_scheme(
        solver,
        gradient,
        backend,
        steps=steps,
        rtol=rtol,
        atol=atol,
        step_size=step_size,
        grid=grid,
        first_step=first_step,
        controller=controller,
        h_min=h_min,
        h_max=h_max,
        norm=norm,
        stops=stops,
        jumps=jumps,
        on_failure=on_failure,
        max_steps=max_steps,
        max_nfe=max_nfe,
        per_sample=per_sample,
        per_sample_args=per_sample_args,
        compile=compile,
        options=options or None,
        gradient_options=gradient_options or None,
    )
    return run(weights_over_depth(F, weights, steps), x0, t_span, scheme, ts, args, dense, event)

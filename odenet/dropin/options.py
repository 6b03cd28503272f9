"""torchdiffeq's options as fields of a scheme."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from odenet.dropin.methods import ADAMS, IMPLICIT, SCIPY, Method, method_of
from odenet.errors import InputError, UnknownNameError
from odenet.solvers.control import Controller
from odenet.solvers.grid import Piece, stepped_grid
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import DEFAULT_CONTROLLER

MAX_STEPS = 1_000_000
MAX_CORRECTIONS = 4
ROUNDINGS = 4  # a relative tolerance in units of the dtype's resolution: an error estimate rounds that much by itself
ANY = ("norm", "dtype")
OF_ADAPTIVE = ("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor")
OF_ADAPTIVE += ("max_num_steps", "step_t", "jump_t")
OF_FIXED = ("step_size", "grid_constructor", "interp", "perturb")
OF_ADAMS = ("max_order", "max_iters")
OF_SCIPY = ("solver", "min_step", "max_step", "first_step")
KNOWN = {*ANY, *OF_ADAPTIVE, *OF_FIXED, *OF_ADAMS, *OF_SCIPY}
INTERP = ("linear", "cubic")


@dataclass(frozen=True)
class Times:
    """The times of a call.

    Attributes:
        t: as they were given, 1-d, monotone.
        host: the same numbers on the host.
    """

    t: Tensor
    host: list[float]

    @classmethod
    def of(cls, t: Any) -> Times:
        """Checked.

        Raises:
            InputError: not a 1-d floating-point tensor that increases or decreases strictly.
        """
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = f"{t.dtype}" if isinstance(t, Tensor) else type(t).__name__
            raise InputError(f"t must be a floating-point tensor, got {got}; use torch.tensor([...]) or t.float()")
        if t.dim() != 1 or not len(t):
            raise InputError(f"t must be one-dimensional and hold at least one time, got shape {tuple(t.shape)}")
        host = [float(value) for value in t.detach().tolist()]
        steps = [b - a for a, b in pairwise(host)]
        one_way = all(s > 0 for s in steps) or all(s < 0 for s in steps)
        if not (one_way and all(math.isfinite(value) for value in host)):
            raise InputError(f"t must be strictly increasing or strictly decreasing, got {host}")
        return cls(t, host)

    @property
    def interval(self) -> tuple[Any, Any]:
        """(t0, t1), t0 with its gradient."""
        return self.t[0], self.host[-1]


def numerics(
    method: str | None, options: Mapping[str, Any] | None, func: Any, y0: Any, times: Times, until_event: bool = False
) -> tuple[Method, dict[str, Any]]:
    """The method that a call asks for, and the fields of its scheme, without tolerances and norm.

    Args:
        method: name of the method, or None for "dopri5".
        options: torchdiffeq's, for this method.
        func: the right-hand side, for `grid_constructor`.
        y0: the initial state, likewise.
        times: of the call.
        until_event: whether the last time is no end.

    Raises:
        InputError: an option that cannot be used.
    """
    if not isinstance(options, Mapping | None):
        raise InputError(f"options must be a dict, got {options!r}")
    given = dict(options or {})
    what = method_of(method, given)
    _check_names(what, given)
    solved: dict[str, Any] = {"solver": what.solver, "backend": what.backend}
    if what.name == SCIPY:
        solved |= _numbers(given, {"max_step": "h_max", "first_step": "first_step"})
        if "min_step" in given and what.solver == "LSODA":
            solved["options"] = {"min_step": _number("min_step", given["min_step"])}
    elif what.adaptive:
        solved |= _adaptive(given, len(times.host))
    else:
        solved |= _fixed(what, given, func, y0, times, until_event)
    return what, solved


def _check_names(method: Method, given: Mapping[str, Any]) -> None:
    """Unknown names are errors; names of another kind of method are ignored with a warning, as in torchdiffeq."""
    if method.name == SCIPY:
        valid = (*ANY, *OF_SCIPY)
    elif method.adaptive:
        valid = (*ANY, *OF_ADAPTIVE)
    else:
        valid = (*ANY, *OF_FIXED)
        valid += OF_ADAMS if method.name in ADAMS else ("max_iters",) if method.name in IMPLICIT else ()
    for name in given:
        if name not in KNOWN:
            raise UnknownNameError(f"option of method {method.name!r}", name, valid)
        if name not in valid:
            warnings.warn(f"method {method.name!r} has no option {name!r}; it is ignored", stacklevel=5)


def _adaptive(given: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    names = {"first_step": "first_step", "min_step": "h_min", "max_step": "h_max"}
    solved: dict[str, Any] = {k: v for k, v in _numbers(given, names).items() if not (k == "h_min" and v == 0)}
    factors: dict[str, Any] = _numbers(given, {"safety": "safety", "ifactor": "grow", "dfactor": "shrink"})
    solved["controller"] = Controller(**factors) if factors else DEFAULT_CONTROLLER
    solved |= {ours: _several(name, given.get(name)) for name, ours in (("step_t", "stops"), ("jump_t", "jumps"))}
    steps = given.get("max_num_steps")
    budget = MAX_STEPS if steps is None else int(_number("max_num_steps", steps)) * max(1, outputs - 1)
    return solved | {"max_steps": max(1, budget)}


def _fixed(
    method: Method, given: Mapping[str, Any], func: Any, y0: Any, times: Times, until_event: bool
) -> dict[str, Any]:
    if given.get("interp", "linear") not in INTERP:
        raise InputError(f"interp must be one of {', '.join(INTERP)}, got {given['interp']!r}")
    size, constructor = given.get("step_size"), given.get("grid_constructor")
    if size is not None and constructor is not None:
        raise InputError("step_size and grid_constructor exclude each other; give one of them")
    t0, t1 = times.host[0], times.host[-1]
    solved: dict[str, Any] = {"max_steps": MAX_STEPS}
    if until_event and size is None:
        raise InputError(f"method {method.name!r} needs options={{'step_size': h}} to look for an event")
    if size is not None:
        size = _number("step_size", size)
        solved["step_size"] = size
    elif constructor is not None:
        solved["grid"] = [float(s) for s in torch.as_tensor(constructor(func, y0, times.t)).tolist()]
    elif len(times.host) > 2:
        solved["grid"] = times.host
    elif t0 == t1:
        solved["steps"] = 1
    else:
        raise InputError(
            f"method {method.name!r} over one interval needs a step size; give options={{'step_size': h}}, or t with "
            "the ends of all steps (options={'grid_constructor': lambda func, y0, t: t} takes a single step)"
        )
    if method.backend == "native" and "corrections" in solvers[method.solver].options:
        solved["options"] = {"corrections": int(_number("max_iters", given.get("max_iters", MAX_CORRECTIONS)))}
    if given.get("perturb"):
        ends = solved.get("grid")
        if ends is None:
            ends = stepped_grid([Piece(0, t0, t1)], (), size) if size is not None and t0 != t1 else [t0, t1]
        solved["jumps"] = tuple(ends)
    return solved


def settling(numerics: dict[str, Any], rtol: Any, atol: Any) -> dict[str, Any]:
    """The fields of a scheme whose steps are corrected, with the tolerances of the call as where that ends.

    Args:
        numerics: fields of a scheme; others are handed back as they are.
        rtol: of the call; of several the least is taken.
        atol: likewise.
    """
    if "corrections" not in numerics.get("options", {}):
        return numerics
    settled = tuple(min(float(torch.as_tensor(leaf).min()) for leaf in tree_leaves(t)) for t in (rtol, atol))
    return numerics | {"options": numerics["options"] | {"settled": settled}}


def tolerance(name: str, value: Any, y0: Any) -> Any:
    """A tolerance of the call as one of a scheme: what the state's precision cannot hold is raised to what it can.

    Args:
        name: "rtol" or "atol".
        value: a number, a tensor, or for a tuple y0 one for each of its tensors.
        y0: the initial state.
    """
    leaves = [y0] if isinstance(y0, Tensor) else list(y0)
    dtype = leaves[0].dtype
    for leaf in leaves[1:]:
        dtype = torch.promote_types(dtype, leaf.dtype)
    least = ROUNDINGS * torch.finfo(dtype).eps if name == "rtol" else torch.finfo(dtype).tiny
    if isinstance(value, Tensor) and value.requires_grad:
        raise InputError(f"{name} cannot require a gradient; detach it")
    several = isinstance(value, Sequence) or (isinstance(value, Tensor) and value.dim() > 0)
    if several and not isinstance(y0, Tensor):
        if len(value) != len(leaves):
            raise InputError(f"{name} must be a number or one for each of {len(leaves)} tensors, got {value!r}")
        return tuple(_floor(name, part, least) for part in value)
    return _floor(name, value, least)


def _floor(name: str, value: Any, least: float) -> Any:
    if isinstance(value, Tensor) and value.dim() > 0:
        return value.clamp(min=least)
    number = _number(name, value)
    return max(number, least) if number >= 0 else number


def _numbers(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The options in `names` that were given, under odenet's names."""
    return {ours: _number(name, given[name]) for name, ours in names.items() if given.get(name) is not None}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, got {value!r}") from None


def _several(name: str, value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    try:
        return tuple(float(s) for s in torch.as_tensor(value).reshape(-1).tolist())
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be a tensor of times, got {value!r}") from None

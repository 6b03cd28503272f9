"""torchdiffeq's method names, and what runs under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from odenet.errors import InputError, UnknownNameError
from odenet.solvers.registry import backends, solvers

ADAPTIVE = ("dopri8", "dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
IMPLICIT = ("implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2", "trbdf2")
IMPLICIT += ("gl4", "gl6", "radauIIA3", "radauIIA5")
SCIPY = "scipy_solver"
OWN_NAMES = {"rk4": "rk4_38", "radauIIA3": "radau3", "radauIIA5": "radau5"}
ADAMS = {"explicit_adams": "ab", "implicit_adams": "abm", "fixed_adams": "abm"}
HIGHEST_ADAMS = 5
LOWEST_ADAMS = 4


class Method(NamedTuple):
    """What runs under one of torchdiffeq's names.

    Attributes:
        name: torchdiffeq's.
        solver: odenet's, or that of the backend.
        backend: who takes the steps.
        adaptive: whether the step follows the tolerance.
    """

    name: str
    solver: str
    backend: str
    adaptive: bool


def method_of(name: str | None, options: Mapping[str, Any]) -> Method:
    """What runs under a name of torchdiffeq's, or of a solver of odenet's that torchdiffeq does not have.

    Args:
        name: of the method; None is "dopri5".
        options: of the method.

    Raises:
        InputError: an unknown name, or a method that is not there.
    """
    name = "dopri5" if name is None else name
    if name == SCIPY:
        return Method(name, options.get("solver", "LSODA"), "scipy", True)
    solver = _adams(name, options) if name in ADAMS else OWN_NAMES.get(name, name)
    known = (*ADAPTIVE, *FIXED, *IMPLICIT)
    if solver in solvers:
        adaptive = name in ADAPTIVE or (
            name not in known and solvers[solver].adaptive and not {"step_size", "grid_constructor"} & set(options)
        )
        return Method(name, solver, "native", adaptive)
    if name in known and name in backends["torchdiffeq"].methods():
        return Method(name, name, "torchdiffeq", name in ADAPTIVE)
    if name in known:
        raise InputError(f"method {name!r} is neither among odenet's solvers nor among those of this torchdiffeq")
    raise UnknownNameError("method", name, {*known, SCIPY, *solvers})


def _adams(name: str, options: Mapping[str, Any]) -> str:
    """The Adams method of an order that torchdiffeq's reaches with `max_order`, at most 5."""
    most = int(options.get("max_order", 12))
    if most < LOWEST_ADAMS:
        return "rk4_38"  # as torchdiffeq does
    return f"{ADAMS[name]}{min(most - 1 if ADAMS[name] == 'ab' else most, HIGHEST_ADAMS)}"

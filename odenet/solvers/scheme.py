"""A numerical scheme: which solver, how its steps are picked, how the gradient comes back. Checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from odenet.errors import InputError, UnknownNameError
from odenet.solvers.control import MAX_STEPS
from odenet.solvers.registry import backends

DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Scheme:
    """How depth is walked and how the loss gets back.

    Attributes:
        solver: name of the method.
        steps: number of equal steps, or None for an adaptive method.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance of an adaptive method.
        gradient: name of the gradient method.
        backend: "native" or "torchdiffeq".
        first_step: size of the first adaptive step, or None to have it estimated.
        max_steps: budget of accepted plus rejected steps.
        max_nfe: budget of forward evaluations of F, or None.
        options: handed to the backend's solver as they are.
        gradient_options: handed to the gradient method.

    Raises:
        InputError: a value that cannot be used, or two that cannot be used together.
    """

    solver: str
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    gradient: str = "autograd"
    backend: str = "native"
    first_step: float | None = None
    max_steps: int = MAX_STEPS
    max_nfe: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    gradient_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        methods = backends[self.backend].methods()
        if not isinstance(self.solver, str) or self.solver not in methods:
            raise _unknown_solver(self.solver, self.backend, methods)
        steps = self.steps
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            hint = "; for an adaptive solver leave steps out and set rtol and atol"
            raise InputError(f"steps must be a positive integer, got {steps!r}{hint}")
        _check_budget("max_steps", self.max_steps)
        if self.max_nfe is not None:
            _check_budget("max_nfe", self.max_nfe)
        if steps is not None:
            self._check_fixed()
            if not methods[self.solver].fixed:
                raise InputError(
                    f"solver {self.solver!r} of backend {self.backend!r} picks its own steps; leave steps out, "
                    f"or use a fixed-step solver: {', '.join(n for n, method in methods.items() if method.fixed)}"
                )
        elif not methods[self.solver].adaptive:
            raise InputError(
                f"solver {self.solver!r} has no error estimate to pick its steps by; give steps=N, "
                f"or use an adaptive solver: {', '.join(n for n, method in methods.items() if method.adaptive)}"
            )
        else:
            self._check_adaptive()
        for name in ("options", "gradient_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise InputError(f"{name} must be a dict, got {getattr(self, name)!r}")
        if self.backend == "native" and self.options:
            raise InputError(f"options are for other backends, the native solvers have none, got {dict(self.options)}")
        check_options(f"option of solver {self.solver!r}", self.options, methods[self.solver].options)

    @property
    def adaptive(self) -> bool:
        """Whether the step size follows the tolerance."""
        return self.steps is None

    @property
    def tolerances(self) -> tuple[float, float]:
        """(rtol, atol), with the default where one was left out."""
        rtol = DEFAULT_TOLERANCE if self.rtol is None else self.rtol
        return rtol, DEFAULT_TOLERANCE if self.atol is None else self.atol

    def but(self, **changes: Any) -> Scheme:
        """This scheme with some values changed; checked again."""
        return replace(self, **changes)

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise `InputError` if the state's dtype is not one of numbers, or cannot resolve the relative tolerance."""
        if not (dtype.is_floating_point or dtype.is_complex):
            raise InputError(f"the state must be of a floating-point or complex dtype, got {dtype}; use x.float()")
        rtol = self.tolerances[0]
        if self.adaptive and rtol < torch.finfo(dtype).eps:
            raise InputError(
                f"rtol={rtol:g} is below what {dtype} resolves ({torch.finfo(dtype).eps:.2g}); "
                "raise rtol or use torch.float64"
            )

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.solver}, steps={self.steps}"
        rtol, atol = self.tolerances
        return f"{self.solver}, rtol={rtol:g}, atol={atol:g}"

    def _check_fixed(self) -> None:
        for name in ("rtol", "atol", "first_step"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{name} belongs to an adaptive solve, but steps={self.steps} fixes the steps of {self.solver!r}; "
                    f"leave out either {name} or steps"
                )
        if self.steps is not None and self.steps > self.max_steps:
            raise InputError(f"steps={self.steps} is more than max_steps={self.max_steps}; raise max_steps")

    def _check_adaptive(self) -> None:
        for name, value in zip(("rtol", "atol"), self.tolerances, strict=True):
            check_tolerance(name, value)
        if self.first_step is not None:
            check_tolerance("first_step", self.first_step)


def check_tolerance(name: str, value: Any) -> None:
    """Raise `InputError` unless `value` is a positive finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= 0:
        raise InputError(f"{name} must be a positive number, got {value!r}")


def check_options(kind: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise `UnknownNameError` for the first name in `given` that is not in `valid`."""
    valid = list(valid)
    for name in given:
        if name not in valid:
            raise UnknownNameError(kind, name, valid)


def _check_budget(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")


def _unknown_solver(name: str, backend: str, methods: Iterable[str]) -> UnknownNameError:
    error = UnknownNameError("solver", name, methods)
    if backend == "torchdiffeq":
        error.args = (f"{error.args[0]} (backend torchdiffeq)",)
    else:
        error.args = (f"{error.args[0]}; more with backend='torchdiffeq'",)
    return error

"""A numerical scheme: which solver, how its steps are picked, how the gradient comes back. Checked when it is made."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from odenet.errors import InputError, UnknownNameError
from odenet.solvers.control import DEFAULT_CONTROLLER, MAX_STEPS, Controller, Norm, controller_of
from odenet.solvers.registry import backends, solvers
from odenet.solvers.stepper import Stepper
from odenet.solvers.times import host_times

DEFAULT_TOLERANCE = 1e-3
AUTOCAST = ("cpu", "cuda", "mps", "xpu")  # devices that have it
ON_FAILURE = ("raise", "status")
COMPILE = ("auto", True, False)
FIXED_BY = ("steps", "step_size", "grid")
ADAPTIVE_ONLY = ("rtol", "atol", "first_step", "controller", "h_min", "h_max", "norm")


@dataclass(frozen=True)
class Scheme:
    """How depth is walked and how the loss gets back.

    Attributes:
        solver: name of the method.
        steps: number of equal steps, or None for an adaptive method.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance of an adaptive method.
        gradient: name of the gradient method.
        backend: "native", "torchdiffeq" or "scipy".
        step_size: h of a fixed-step method, instead of steps; a last step before a stop may be shorter.
        grid: ends of the steps of a fixed-step method, from t0 to t1, instead of steps; with `per_sample` also a tensor
            (steps + 1, batch).
        first_step: size of the first adaptive step, or None to have it estimated.
        controller: how the next adaptive step is picked: a name of `controllers`, a `Controller`, or "auto" for the
            method's own.
        h_min: smallest adaptive step; at that size a step is accepted whatever its error.
        h_max: largest adaptive step.
        norm: size of a scaled state in an adaptive solve, tensor -> number or 0-d tensor; None for RMS.
        stops: times at which a step has to end.
        jumps: times at which F is discontinuous: a step ends there, and the method starts anew.
        on_failure: "raise", or "status" to return what was reached.
        max_steps: budget of accepted plus rejected steps.
        max_nfe: budget of forward evaluations of F, or None.
        per_sample: whether each sample has its own steps.
        per_sample_args: which of `args` hold a row for each sample; None if there is no doubt.
        compile: "auto", True or False: whether a solve is one compiled graph.
        options: handed to the backend's solver as they are.
        gradient_options: handed to the gradient method.

    Raises:
        InputError: a value that cannot be used, or two that cannot be used together.
    """

    solver: str
    steps: int | None = None
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    gradient: str = "autograd"
    backend: str = "native"
    step_size: float | None = None
    grid: Sequence[float] | None = None
    first_step: float | None = None
    controller: str | Controller = DEFAULT_CONTROLLER
    h_min: float = 0.0
    h_max: float = math.inf
    norm: Norm | None = None
    stops: Sequence[float] = ()
    jumps: Sequence[float] = ()
    on_failure: str = "raise"
    max_steps: int = MAX_STEPS
    max_nfe: int | None = None
    per_sample: bool = False
    per_sample_args: bool | Sequence[int] | None = None
    compile: str | bool = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    gradient_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        methods = backends[self.backend].methods()
        if not isinstance(self.solver, str) or self.solver not in methods:
            raise _unknown_solver(self.solver, self.backend, methods)
        self._check_times()
        steps = self.steps
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            hint = "; for an adaptive solver leave steps out and set rtol and atol"
            raise InputError(f"steps must be a positive integer, got {steps!r}{hint}")
        if self.on_failure not in ON_FAILURE:
            raise InputError(f"on_failure must be one of {', '.join(ON_FAILURE)}, got {self.on_failure!r}")
        if self.compile not in COMPILE or not isinstance(self.compile, str | bool):
            raise InputError(f"compile must be 'auto', True or False, got {self.compile!r}")
        _check_budget("max_steps", self.max_steps)
        if self.max_nfe is not None:
            _check_budget("max_nfe", self.max_nfe)
        if not self.adaptive:
            self._check_fixed()
            if not methods[self.solver].fixed:
                raise InputError(
                    f"solver {self.solver!r} of backend {self.backend!r} picks its own steps; leave {self._by} out, "
                    f"or use a fixed-step solver: {', '.join(n for n, method in methods.items() if method.fixed)}"
                )
        elif not methods[self.solver].adaptive:
            raise InputError(
                f"solver {self.solver!r} has no error estimate to pick its steps by; give steps=N, "
                f"or use an adaptive solver: {', '.join(n for n, method in methods.items() if method.adaptive)}"
            )
        else:
            self._check_adaptive()
        self._check_per_sample()
        for name in ("options", "gradient_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise InputError(f"{name} must be a dict, got {getattr(self, name)!r}")
        if self.backend == "native" and self.options and not methods[self.solver].options:
            raise InputError(
                f"options are for other backends and for methods that correct, solver {self.solver!r} has none, got "
                f"{dict(self.options)}"
            )
        check_options(f"option of solver {self.solver!r}", self.options, methods[self.solver].options)

    @cached_property
    def adaptive(self) -> bool:
        """Whether the step size follows the tolerance."""
        return self._by is None

    @property
    def _by(self) -> str | None:
        """Which argument fixes the steps."""
        return next((name for name in FIXED_BY if getattr(self, name) is not None), None)

    @cached_property
    def step_controller(self) -> Controller:
        """The controller of an adaptive solve."""
        if self.controller != DEFAULT_CONTROLLER:
            return controller_of(self.controller)
        stepper = next((stepper for name, stepper in solvers.items() if name == self.solver), Stepper)
        return controller_of(stepper.controller)

    @cached_property
    def tolerances(self) -> tuple[Any, Any]:
        """(rtol, atol), with the default where one was left out."""
        rtol = DEFAULT_TOLERANCE if self.rtol is None else self.rtol
        return rtol, DEFAULT_TOLERANCE if self.atol is None else self.atol

    def but(self, **changes: Any) -> Scheme:
        """This scheme with some values changed; checked again."""
        return replace(self, **changes)

    def check_dtype(self, dtype: torch.dtype, device: str) -> None:
        """Raise `InputError` if the state's dtype is not one of numbers, or cannot resolve the relative tolerance.

        Warns if F cannot, where it runs in lower precision than the state.

        Args:
            dtype: of the state.
            device: type of the state's device.
        """
        if not (dtype.is_floating_point or dtype.is_complex):
            raise InputError(f"the state must be of a floating-point or complex dtype, got {dtype}; use x.float()")
        if not self.adaptive:
            return
        rtol = self.tolerances[0]
        if not isinstance(rtol, float):
            rtol = max(float(torch.as_tensor(leaf).max()) for leaf in tree_leaves(rtol))
        if rtol < torch.finfo(dtype).eps:
            raise InputError(
                f"rtol={rtol:g} is below what {dtype} resolves ({torch.finfo(dtype).eps:.2g}); "
                "raise rtol or use torch.float64"
            )
        if device in AUTOCAST and torch.is_autocast_enabled(device):
            low = torch.get_autocast_dtype(device)
            if rtol < torch.finfo(low).eps:
                warnings.warn(
                    f"rtol={rtol:g} is below what F resolves in {low} under torch.autocast "
                    f"({torch.finfo(low).eps:.2g}): smaller steps cannot make the error smaller than that; raise rtol, "
                    "or evaluate F in the state's dtype",
                    stacklevel=2,
                )

    def check_shape(self, shape: torch.Size) -> None:
        """Raise `InputError` if a tolerance is a tensor that does not broadcast to a state of this shape."""
        for name, value in zip(("rtol", "atol"), self.tolerances, strict=True) if self.adaptive else ():
            if not isinstance(value, Tensor):
                continue
            own = value.shape
            fits = len(own) <= len(shape) and all(n in (1, m) for n, m in zip(own[::-1], shape[::-1], strict=False))
            if not fits:
                raise InputError(
                    f"{name} must be a number or broadcast to the state's shape {tuple(shape)}, got {tuple(own)}"
                )

    def __str__(self) -> str:
        if self._by is not None:
            size = (
                f"{len(self.grid) - 1} given steps"
                if self.grid is not None
                else f"{self._by}={getattr(self, self._by)}"
            )
            return f"{self.solver}, {size}" + (", per sample" if self.per_sample else "")
        rtol, atol = (f"{t:g}" if isinstance(t, float | int) else "per element" for t in self.tolerances)
        return f"{self.solver}, rtol={rtol}, atol={atol}" + (", per sample" if self.per_sample else "")

    def _check_times(self) -> None:
        """Times and sizes of any scheme: host numbers from here on."""
        given = [name for name in FIXED_BY if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"give one of {', '.join(FIXED_BY)}, got {' and '.join(given)}")
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        for name in ("grid", "stops", "jumps"):
            if self._is_own_grid(name):
                object.__setattr__(self, name, getattr(self, name).detach().to("cpu", torch.float64))
            elif getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(host_times(name, getattr(self, name))))

    def _is_own_grid(self, name: str) -> bool:
        """Whether an argument is a grid with a column for each sample."""
        given = getattr(self, name)
        return name == "grid" and self.per_sample is True and isinstance(given, Tensor) and given.dim() == 2

    def _check_per_sample(self) -> None:
        own = self.per_sample_args
        if own is not None and not isinstance(own, bool):
            own = tuple(own) if isinstance(own, Iterable) and not isinstance(own, str) else (own,)
            if not all(isinstance(number, int) and number >= 0 for number in own):
                raise InputError(f"per_sample_args must be indices of args, such as (0,), got {self.per_sample_args!r}")
            object.__setattr__(self, "per_sample_args", own)
        if not isinstance(self.per_sample, bool):
            raise InputError(f"per_sample must be True or False, got {self.per_sample!r}")
        if not self.per_sample:
            return
        if self.backend != "native":
            raise InputError(f"per_sample=True is for backend='native' only, got backend={self.backend!r}")
        if not solvers[self.solver].per_sample:
            able = [n for n, stepper in solvers.items() if stepper.per_sample and stepper.adaptive >= self.adaptive]
            raise InputError(
                f"solver {self.solver!r} cannot give each sample its own steps; with per_sample=True use one of: "
                f"{', '.join(able)}"
            )

    def _check_fixed(self) -> None:
        for name in ADAPTIVE_ONLY:
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(
                    f"{name} belongs to an adaptive solve, but {self._by}={getattr(self, self._by or '')!r} fixes the "
                    f"steps of {self.solver!r}; leave out either {name} or {self._by}"
                )
        if self.steps is not None and self.steps > self.max_steps:
            raise InputError(f"steps={self.steps} is more than max_steps={self.max_steps}; raise max_steps")

    def _check_adaptive(self) -> None:
        for name, value in zip(("rtol", "atol"), self.tolerances, strict=True):
            check_tolerance(name, value)
        for name in ("first_step", "h_min", "h_max"):
            value = getattr(self, name)
            if value != getattr(type(self), name):
                check_positive(name, value)
        if self.h_min > self.h_max:
            raise InputError(f"h_min={self.h_min:g} is larger than h_max={self.h_max:g}")
        self.step_controller  # noqa: B018 raises where there is none of this name
        for name in backends[self.backend].refuses:
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(
                    f"the solvers of backend {self.backend!r} do not take {name}; leave {name}={getattr(self, name)!r} "
                    "out, or use backend='native'"
                )
        if self.norm is not None and not callable(self.norm):
            raise InputError(f"norm must be a function of a scaled state, got {self.norm!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise `InputError` unless `value` is a positive finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= 0:
        raise InputError(f"{name} must be a positive number, got {value!r}")


def check_tolerance(name: str, value: Any) -> None:
    """Raise `InputError` unless `value` is a positive finite number, a tensor of such numbers, or a tree of those."""
    for leaf in tree_leaves(value):
        if not isinstance(leaf, Tensor):
            check_positive(name, leaf)
        elif not bool(((leaf > 0) & leaf.isfinite()).all()):
            raise InputError(f"{name} must hold positive numbers, got values down to {float(leaf.min()):g}")


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
    others = [other for other in backends if isinstance(name, str) and name in backends[other].methods()]
    hint = f"; backend={others[0]!r} has it" if others else ""
    error.args = (f"{error.args[0]} (backend {backend!r}){hint}",)
    return error

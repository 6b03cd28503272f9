"""The errors odenet raises: one sentence each, with what was given, what was expected and what works.

`OdenetError` is the root. Bad input is an `InputError` (a `ValueError` too), raised before any work starts;
a solve that breaks down is a `SolveError` and carries the numbers of the moment it broke down.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class OdenetError(Exception):
    """Root of every error that odenet raises on purpose."""


class InputError(OdenetError, ValueError):
    """An argument cannot be used; the message says what was given and what works."""


class UnknownNameError(InputError):
    """A solver, gradient, residual, data set or option name that no registry holds."""

    def __init__(self, kind: str, name: object, valid: Iterable[str]):
        self.kind, self.name, self.valid = kind, name, sorted(valid)
        near = difflib.get_close_matches(str(name), self.valid, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}; {hint}valid: {', '.join(self.valid)}")


class ResidualError(OdenetError, ValueError):
    """F(t, x) did not return a tensor of x's shape, dtype and device."""


class GradientError(OdenetError, RuntimeError):
    """A gradient that was asked for cannot be delivered; nothing is silently set to zero."""


class RunError(OdenetError):
    """A run folder, checkpoint or result file is missing, unreadable or cannot be written."""


class SolveError(OdenetError, RuntimeError):
    """A solve broke down.

    Attributes:
        t: depth at which it broke down.
        h: step size of the failing step.
        sample: index along the first axis of the state of the first sample concerned, or None.
        error_ratio: last scaled error norm (a step is accepted up to 1), or None for a fixed step.
        nfe: evaluations of F up to then.
        status: short machine-readable reason.
    """

    status = "failed"

    def __init__(
        self,
        what: str,
        *,
        t: float,
        h: float,
        nfe: int,
        sample: int | None = None,
        error_ratio: float | None = None,
        advice: str = "",
    ):
        self.t, self.h, self.nfe, self.sample, self.error_ratio = t, h, nfe, sample, error_ratio
        details = f"t={t:.6g}, h={h:.3g}"
        if sample is not None:
            details += f", sample {sample}"
        if error_ratio is not None:
            details += f", last error ratio {error_ratio:.3g}"
        super().__init__(f"{what} at {details} after {nfe} evaluations of F" + (f"; {advice}" if advice else ""))


class NonFiniteFunctionError(SolveError):
    """F returned NaN or infinity for a finite state."""

    status = "nonfinite_function"


class NonFiniteStateError(SolveError):
    """The state itself overflowed or became NaN."""

    status = "nonfinite_state"


class NonlinearSolveError(SolveError):
    """The equations of an implicit step could not be solved.

    Attributes:
        residual: size of the last correction of Newton's method, in units of what was asked for.
    """

    status = "nonlinear_solve"

    def __init__(self, what: str, *, residual: float, **numbers: Any):
        self.residual = residual
        super().__init__(f"{what} (last correction {residual:.3g} times what was asked for)", **numbers)


class StepUnderflowError(SolveError):
    """The adaptive step became smaller than the interval can resolve."""

    status = "step_underflow"


class StepBudgetError(SolveError):
    """More steps than `max_steps` were needed."""

    status = "step_budget"


class FunctionBudgetError(SolveError):
    """More evaluations of F than `max_nfe` were needed."""

    status = "nfe_budget"

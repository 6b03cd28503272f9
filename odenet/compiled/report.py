"""What the user is told: how long compiling took, and why a solve is walked eagerly."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from odenet.solvers.problem import Problem

if TYPE_CHECKING:
    from odenet.solvers.per_sample import SampleProblem

log = logging.getLogger("odenet")


class CompileWarning(UserWarning):
    """A solve that was to be compiled is walked eagerly."""


class RefusalError(Exception):
    """A problem cannot be compiled; the message says why, as the end of a sentence."""


def tell(what: str, problem: Problem | SampleProblem, seconds: float) -> None:
    """Say, once for each graph, how long it took to make it."""
    log.warning("odenet compiled %s by %s in %.1f s", what, problem.scheme.solver, seconds)


def warn(refusal: str) -> None:
    """Say why a solve with compile=True is walked eagerly."""
    warnings.warn(f"compile=True, but this solve is walked eagerly: {refusal}", CompileWarning, stacklevel=2)


def warn_back(error: Exception) -> None:
    """Say why the gradient of a compiled solve is walked eagerly."""
    warnings.warn(
        f"the gradient of a compiled solve is walked eagerly: {uncaptured(error)}", CompileWarning, stacklevel=2
    )


def uncaptured(error: Exception) -> str:
    """In a few words why something could not be captured as a graph."""
    error = getattr(error, "inner_exception", error)  # what a backend raised
    if isinstance(error, RefusalError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    explained = [line.removeprefix("Explanation:").strip() for line in lines if line.startswith("Explanation:")]
    first = next(filter(None, (*explained, *lines)), type(error).__name__)  # an explanation may be empty
    return f"F cannot be captured as a graph ({first.rstrip('.')})"

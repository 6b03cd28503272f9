"""Solvers: tableaux as data, the explicit stepper, step control, the loop."""

from odenet.solvers.control import Controller, controllers
from odenet.solvers.events import Event
from odenet.solvers.problem import Problem
from odenet.solvers.registry import backends, solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution
from odenet.solvers.stats import Stats


def list_solvers(backend: str = "native") -> list[str]:
    """Names of the solvers of a backend.

    Args:
        backend: "native", "torchdiffeq" or "scipy".
    """
    return list(backends[backend].methods())


__all__ = [
    "Controller",
    "Event",
    "Problem",
    "Scheme",
    "Solution",
    "Stats",
    "backends",
    "controllers",
    "list_solvers",
    "solvers",
]

"""Regularisers: integrals and sums over depth that make F cheap to solve, as terms of the training loss."""

from odenet.regularisers.estimates import Estimate, LocalError, Stiffness
from odenet.regularisers.integrals import jacobian, kinetic
from odenet.regularisers.penalised import check_regularisers, penalised
from odenet.regularisers.registry import regularisers


def list_regularisers() -> list[str]:
    """Names of the regularisers."""
    return list(regularisers)


__all__ = [
    "Estimate",
    "LocalError",
    "Stiffness",
    "check_regularisers",
    "jacobian",
    "kinetic",
    "list_regularisers",
    "penalised",
    "regularisers",
]

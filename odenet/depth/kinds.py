"""Weights in a basis of depth, to be given as `weights=`: their kinds, by basis and by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from odenet.depth.bases import Basis, BSpline, Chebyshev, Fourier
from odenet.depth.coefficients import Coefficients, drawn, mapped, stacked
from odenet.depth.expansion import Expansion
from odenet.depth.projection import draw, ones, report, residual, transfer
from odenet.depth.weights import DepthWeights, ResidualFunction, check_module, check_residual, depth_weights
from odenet.errors import InputError

INITS = ("drawn", "tied")


@dataclass(frozen=True)
class ExpansionKind:
    """Weights in a basis of depth, to be given as `weights=`.

    Args:
        basis: the functions of depth.
        init: "drawn" or "tied".
    """

    basis: Basis
    init: str = "drawn"

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise InputError(f"init must be one of {', '.join(INITS)}, got {self.init!r}")

    def __call__(self, F: ResidualFunction) -> Expansion:
        check_residual(F)
        F = check_module(F)
        return Expansion(F, self.basis, initial(F, self.basis, self.basis.size if self.init == "drawn" else 1))

    def project(self, weights: DepthWeights) -> Expansion:
        coefficients = weights.coefficients()
        new = mapped(transfer(weights.basis, self.basis), coefficients)
        expansion = Expansion(weights.template, self.basis, new)
        expansion.residual = report(residual(weights.basis, self.basis, coefficients))
        return expansion

    def refined(self, k: int) -> ExpansionKind:
        return ExpansionKind(self.basis.refined(k), self.init)

    def resized(self, n: int) -> ExpansionKind:
        return ExpansionKind(self.basis.resized(n), self.init)


def initial(F: nn.Module, basis: Basis, n: int) -> Coefficients:
    """Coefficients from n draws of F's weights, F's own first; with n = 1 F's own at all depths."""
    return mapped(draw(basis, n) if n > 1 else ones(basis)[:, None], stacked(drawn(F, n)))


def piecewise_linear(N: int, init: str = "drawn") -> ExpansionKind:
    """Weights that are linear on each N-th of depth and continuous: N + 1 nodes.

    Args:
        N: number of pieces, at least 1.
        init: "drawn" as an untied ResNet's, with the variance over depth that F's own initialisation has; or "tied",
            F's own weights at all depths.

    Raises:
        InputError: N is not a positive integer.
    """
    return ExpansionKind(BSpline(1, N), init)


def bspline(degree: int, N: int, init: str = "drawn") -> ExpansionKind:
    """Weights that are splines in depth, with `degree` - 1 continuous derivatives: N + degree coefficients.

    Args:
        degree: of the polynomials, 0 to 7; 3 is a cubic spline.
        N: number of equal pieces, at least 1.
        init: as in `piecewise_linear`.

    Raises:
        InputError: an argument that cannot be used.

    Reference:
        de Boor 1978, A Practical Guide to Splines.
    """
    return ExpansionKind(BSpline(degree, N), init)


def chebyshev(K: int, init: str = "drawn") -> ExpansionKind:
    """Weights that are polynomials of degree K - 1 in depth, by Chebyshev polynomials: one piece, no knots.

    Args:
        K: number of polynomials, at least 1.
        init: as in `piecewise_linear`.

    Raises:
        InputError: K is not a positive integer.
    """
    return ExpansionKind(Chebyshev(K), init)


def fourier(K: int, init: str = "drawn") -> ExpansionKind:
    """Weights that are periodic in depth: 1, sin 2πs, cos 2πs, sin 4πs, ..., K functions; one piece, no knots.

    Args:
        K: number of functions, at least 1; an odd number closes the last sine with its cosine.
        init: as in `piecewise_linear`.

    Raises:
        InputError: K is not a positive integer.

    Reference:
        Massaroli et al. 2020, Dissecting Neural ODEs (Galerkin weights).
    """
    return ExpansionKind(Fourier(K), init)


def sized(name: str, steps: int | None, example: str) -> int:
    """The size of a basis that was asked for by name: the number of steps.

    Raises:
        InputError: there is no number of steps.
    """
    if steps is None:
        raise InputError(
            f"weights={name!r} takes its size from steps, and an adaptive solver has none; "
            f"give weights=odenet.depth.{example}, or steps=N with a fixed-step solver"
        )
    return steps


def _register(name: str, what: str, example: str, make: Callable[[int], ExpansionKind]) -> None:
    def by_name(F: ResidualFunction, steps: int | None) -> DepthWeights:
        return make(sized(name, steps, example))(F)

    by_name.__doc__ = what
    depth_weights.add(name, by_name)


_register("piecewise_linear", "Linear between nodes of depth.", "piecewise_linear(8)", piecewise_linear)
_register("bspline", "Cubic splines in depth.", "bspline(3, 8)", lambda N: bspline(3, N))
_register("chebyshev", "Polynomials in depth.", "chebyshev(4)", chebyshev)
_register("fourier", "Periodic functions of depth.", "fourier(5)", fourier)

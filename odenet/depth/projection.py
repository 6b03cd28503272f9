"""From one basis of depth to another, best in L2 over depth.

θ(s) = Σ_j ψ_j(s) C_j is brought to Σ_i φ_i(s) (A C)_i with

    A = argmin ∫ |ψ(s) - Aᵀ φ(s)|² ds = G⁻¹ ∫ φ ψᵀ ds,   G = ∫ φ φᵀ ds,

by Gauss quadrature on the pieces between the knots of both, which is exact for polynomials. Where the span of φ holds
that of ψ, A is exact to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from odenet.depth.bases import Basis, BSpline, evaluate_basis

CLOSE = 1e-12
NEGLIGIBLE, DYADIC = 2e-14, 2**16


class Samples(NamedTuple):
    """Two bases at the same Gauss points, each row times the root of its weight.

    Attributes:
        source: (n, M), √w ψ(s).
        target: (n, K), √w φ(s).
    """

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Residual:
    """What a projection lost: the L2 norm over depth of θ - projection, all weights together.

    Attributes:
        absolute: (∫ |θ(s) - θ̂(s)|² ds)^½, s the fraction of depth.
        relative: `absolute` over (∫ |θ(s)|² ds)^½; 0 if θ is zero.
        of: the relative residual of each tensor by its name in F.
    """

    absolute: float
    relative: float
    of: dict[str, float]


@lru_cache(maxsize=32)
def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Points in [0, 1] and weights of Gauss-Legendre quadrature, float64.

    Reference:
        Golub and Welsch 1969, Calculation of Gauss Quadrature Rules.
    """
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k * k - 1)
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (points + 1) / 2, vectors[0] ** 2


@lru_cache(maxsize=64)
def samples(source: Basis, target: Basis) -> Samples:
    """Both bases at Gauss points on every piece between the knots of either."""
    edges = [0.0]
    for knot in sorted({*source.knots, *target.knots, 1.0}):
        if knot - edges[-1] > CLOSE:
            edges.append(knot)
    points, weights = gauss_legendre(max(source.gauss, target.gauss) + 1)
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a, b in pairwise(edges):
        s, root = a + (b - a) * points, ((b - a) * weights).sqrt()[:, None]
        for basis, found in zip((source, target), rows, strict=True):
            piece = sum(knot <= a + CLOSE for knot in basis.knots)
            found.append(root * evaluate_basis(basis, s, piece))
    return Samples(torch.cat(rows[0]), torch.cat(rows[1]))


@lru_cache(maxsize=64)
def transfer(source: Basis, target: Basis) -> Tensor:
    """A, (K, M): coefficients in `target` from those in `source`, best in L2 over depth."""
    if source == target:
        return torch.eye(source.size, dtype=torch.float64)
    psi, phi = samples(source, target)
    A = torch.linalg.lstsq(phi, psi).solution
    dyadic = (A * DYADIC).round() / DYADIC  # 0, 1/2, 1: what copies and means of coefficients have for entries
    return torch.where((A - dyadic).abs() < NEGLIGIBLE * A.abs().max(), dyadic, A)


def gram(basis: Basis) -> Tensor:
    """G = ∫ φ φᵀ ds, (K, K)."""
    phi = samples(basis, basis).target
    return phi.T @ phi


def means(basis: Basis) -> Tensor:
    """∫ φ ds, (K,)."""
    psi, phi = samples(BSpline(0, 1), basis)
    return (phi * psi).sum(0)


def ones(basis: Basis) -> Tensor:
    """e, (K,): the coefficients of the function 1."""
    return transfer(BSpline(0, 1), basis)[:, 0]


def squares(S: Tensor, coefficients: Tensor) -> float:
    """∫ |Σ_k r_k(s) C_k|² ds, where S = ∫ r rᵀ ds and `coefficients` is (K, ...)."""
    C = coefficients.detach().to("cpu").reshape(len(coefficients), -1)
    C = C.to(torch.complex128 if C.is_complex() else torch.float64)
    return max(0.0, float(((S.to(C.dtype) @ C).conj() * C).sum().real))


def residual(source: Basis, target: Basis, coefficients: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """For each tensor, (∫ |θ - θ̂|² ds, ∫ |θ|² ds) of the projection from `source` to `target`."""
    psi, phi = samples(source, target)
    E = psi - phi @ transfer(source, target)
    lost, whole = E.T @ E, psi.T @ psi
    return {name: (squares(lost, C), squares(whole, C)) for name, C in coefficients.items()}


def report(found: dict[str, tuple[float, float]]) -> Residual:
    """Squares of norms, lost and whole by tensor, as a `Residual`."""
    share = {name: (lost / whole) ** 0.5 if whole else 0.0 for name, (lost, whole) in found.items()}
    lost, whole = (sum(pair[i] for pair in found.values()) for i in (0, 1))
    return Residual(lost**0.5, (lost / whole) ** 0.5 if whole else 0.0, share)


def draw(basis: Basis, n: int) -> Tensor:
    """W, (K, n): coefficients W D of n independent draws D whose function of depth varies as much as a single draw.

    The draws are taken as the layers of a ResNet, projected to the basis, and what varies around their mean is scaled:

        W = e m + a (P - e m),   P = transfer from n constant pieces,   m = (1/n, ..., 1/n)

    so that E θ(s) is the mean of a draw, and ∫ Var θ(s) ds its variance, for each entry of the weights.
    """
    P = transfer(BSpline(0, n), basis)
    mean = torch.outer(ones(basis), torch.full((n,), 1 / n, dtype=torch.float64))
    varies = float((P * (gram(basis) @ P)).sum()) - 1 / n
    a = ((1 - 1 / n) / varies) ** 0.5 if n > 1 and varies > CLOSE else 1.0
    return mean + a * (P - mean)

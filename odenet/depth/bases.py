"""Bases of functions of depth: φ_1(s), ..., φ_K(s) on [0, 1], smooth between knots.

A basis is asked for its values on one piece between knots, at local coordinates u in [0, 1] from the start of the piece
to its end, and answers in tensor operations: differentiable in u, traceable, without a look at the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from odenet.errors import InputError

B = TypeVar("B", bound="Basis")
FINEST_GAUSS = 20


class Basis(Protocol):
    """Functions of depth.

    Attributes:
        size: K, the number of functions.
        knots: interior ends of the pieces, increasing, in (0, 1).
        gauss: number of Gauss points on a piece that integrate the product of two of the functions to rounding.
    """

    @property
    def size(self) -> int: ...
    @property
    def knots(self) -> tuple[float, ...]: ...
    @property
    def gauss(self) -> int: ...

    def active(self, piece: int) -> tuple[int, int]:
        """(first, count) of the functions that are not zero on a piece."""
        ...

    def table(self, piece: int) -> Tensor:
        """What `values` needs on a piece beside u: a float64 tensor on the CPU."""
        ...

    def values(self, u: Tensor, table: Tensor) -> Tensor:
        """φ_k(u) of the active functions, shape (*u.shape, count).

        Args:
            u: local coordinates in [0, 1].
            table: that of the piece, in the dtype and on the device of u.
        """
        ...

    def resized(self: B, n: int) -> B:
        """The same kind of basis with n pieces; with n functions, if it has one piece only."""
        ...

    def refined(self: B, k: int) -> B:
        """The same kind of basis with k times the pieces, or functions; its span holds that of this one."""
        ...


@dataclass(frozen=True)
class BSpline:
    """B-splines on N equal pieces, clamped at both ends: K = N + degree functions that sum to one.

        B_{j,0} = 1 on [τ_j, τ_{j+1}),
        B_{j,d}(s) = (s - τ_j)/(τ_{j+d} - τ_j) B_{j,d-1}(s) + (τ_{j+d+1} - s)/(τ_{j+d+1} - τ_{j+1}) B_{j+1,d-1}(s)

    Degree 0 is piecewise constant, degree 1 piecewise linear (hat functions).

    Args:
        degree: of the polynomials, at least 0.
        pieces: N.

    Reference:
        de Boor 1978, A Practical Guide to Splines.
    """

    degree: int
    pieces: int

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or isinstance(self.degree, bool) or not 0 <= self.degree <= 7:
            raise InputError(f"the degree of a B-spline must be an integer from 0 to 7, got {self.degree!r}")
        what = "layers" if self.degree == 0 else "pieces"
        check_count(f"the number of {what}", self.pieces)

    @property
    def size(self) -> int:
        return self.pieces + self.degree

    @property
    def knots(self) -> tuple[float, ...]:
        return tuple(i / self.pieces for i in range(1, self.pieces))

    @property
    def gauss(self) -> int:
        return self.degree + 1

    def active(self, piece: int) -> tuple[int, int]:
        return piece, self.degree + 1

    def table(self, piece: int) -> Tensor:
        """(degree + 1, count): φ_k(u) = Σ_p u^p table[p, k]."""
        tau = [min(max(j - self.degree, 0), self.pieces) for j in range(self.size + self.degree + 1)]
        at = piece + self.degree  # index of the knot at which the piece begins
        found: dict[int, list[float]] = {at: [1.0]}
        for d in range(1, self.degree + 1):
            higher = {}
            for j in range(at - d, at + 1):
                total = [0.0] * (d + 1)
                for polynomial, start, slope, width in (
                    (found.get(j), piece - tau[j], 1.0, tau[j + d] - tau[j]),
                    (found.get(j + 1), tau[j + d + 1] - piece, -1.0, tau[j + d + 1] - tau[j + 1]),
                ):
                    for power, a in enumerate(polynomial or []):
                        total[power] += a * start / width
                        total[power + 1] += a * slope / width
                higher[j] = total
            found = higher
        columns = [found[j] for j in range(piece, piece + self.degree + 1)]
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()

    def values(self, u: Tensor, table: Tensor) -> Tensor:
        if self.degree == 0:
            return torch.ones_like(u).unsqueeze(-1)
        if self.degree == 1:
            return torch.stack([1 - u, u], -1)
        powers = [torch.ones_like(u), u]
        while len(powers) <= self.degree:
            powers.append(powers[-1] * u)
        return (torch.stack(powers, -1).unsqueeze(-1) * table).sum(-2)

    def resized(self, n: int) -> BSpline:
        return replace(self, pieces=n)

    def refined(self, k: int) -> BSpline:
        return replace(self, pieces=k * self.pieces)


@dataclass(frozen=True)
class Chebyshev:
    """Chebyshev polynomials T_0, ..., T_{K-1} of 2s - 1: one piece.

        T_0 = 1,  T_1(z) = z,  T_{m+n} = 2 T_m T_n - T_{m-n}

    Args:
        size: K.
    """

    size: int

    def __post_init__(self) -> None:
        check_count("the number of Chebyshev polynomials", self.size)

    @property
    def knots(self) -> tuple[float, ...]:
        return ()

    @property
    def gauss(self) -> int:
        return self.size

    def active(self, piece: int) -> tuple[int, int]:
        return 0, self.size

    def table(self, piece: int) -> Tensor:
        return torch.empty(0, dtype=torch.float64)

    def values(self, u: Tensor, table: Tensor) -> Tensor:
        T = torch.stack([torch.ones_like(u), 2 * u - 1], -1)
        while T.shape[-1] < self.size:
            m = T.shape[-1] - 1
            T = torch.cat([T, 2 * T[..., m:] * T[..., 1:] - T[..., :m].flip(-1)], -1)
        return T[..., : self.size]

    def resized(self, n: int) -> Chebyshev:
        return Chebyshev(n)

    def refined(self, k: int) -> Chebyshev:
        return Chebyshev(k * self.size)


@dataclass(frozen=True)
class Fourier:
    """1, sin 2πs, cos 2πs, sin 4πs, cos 4πs, ...: K functions of period 1, one piece.

    Args:
        size: K.
    """

    size: int

    def __post_init__(self) -> None:
        check_count("the number of Fourier functions", self.size)

    @property
    def knots(self) -> tuple[float, ...]:
        return ()

    @property
    def gauss(self) -> int:
        return FINEST_GAUSS + 4 * self.size

    def active(self, piece: int) -> tuple[int, int]:
        return 0, self.size

    def table(self, piece: int) -> Tensor:
        """(2, K): φ_k(u) = cos(table[0, k] u - table[1, k])."""
        k = torch.arange(self.size, dtype=torch.float64)
        return torch.stack([2 * math.pi * ((k + 1) // 2), math.pi / 2 * (k % 2)])

    def values(self, u: Tensor, table: Tensor) -> Tensor:
        return torch.cos(u.unsqueeze(-1) * table[0] - table[1])

    def resized(self, n: int) -> Fourier:
        return Fourier(n)

    def refined(self, k: int) -> Fourier:
        return Fourier(k * self.size)


def check_count(name: str, value: object) -> None:
    """Raise `InputError` unless `value` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")


def evaluate_basis(basis: Basis, s: Tensor, piece: int | None = None) -> Tensor:
    """All K functions at fractions s of depth.

    Args:
        basis: the functions.
        s: (n,) fractions in [0, 1], float64.
        piece: the piece that they belong to; None to find it for each, where one at a knot belongs to the piece that
            begins there.

    Returns:
        (n, K) values.
    """
    edges = [0.0, *basis.knots, 1.0]
    if piece is None:
        pieces = torch.bucketize(s, torch.tensor(basis.knots, dtype=s.dtype), right=True).tolist()
    else:
        pieces = [piece] * len(s)
    values = s.new_zeros(len(s), basis.size)
    for i in sorted(set(pieces)):
        here = torch.tensor([p == i for p in pieces])
        first, count = basis.active(i)
        u = (s[here] - edges[i]) / (edges[i + 1] - edges[i])
        values[here, first : first + count] = basis.values(u, basis.table(i))
    return values

"""Butcher tableaus of the implicit Runge-Kutta methods, as data.

    k_i = F(t + c_i h, x + h Σ_j a_ij k_j),   x⁺ = x + h Σ_i b_i k_i,   error = h (d_0 F(t, x) + Σ_i (b_i - b̂_i) k_i)

A collocation method is its abscissae. To add a method, add an entry to `IMPLICIT`. Derived for this library: the dense
output of kvaerno5 (of the polynomials of degree 4 that meet all continuous order conditions up to order 4 and join with
their slopes, those with about the smallest error of order 5), and the error estimates of implicit_euler and trapezoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod, sqrt

import numpy as np

from odenet.registry import Registry

GUESSED_FROM = 3  # stages: more make some predictions worse


@dataclass(frozen=True)
class ImplicitTableau:
    """One implicit Runge-Kutta method.

    Attributes:
        name: its name in the field.
        order: order of accuracy p of x⁺.
        c: abscissae, one per stage.
        a: square matrix of coefficients. Lower triangular: the stages are solved one after the other; a first row of
            zeros is an explicit stage. Otherwise all stages are solved together.
        b: weights of x⁺.
        b_error: b - b̂ of the embedded method, or None.
        error_order: q of the error estimate, which falls like h^q.
        error_first: d_0, the weight of F(t, x) in the estimate where no stage is F(t, x).
        filter: γ_0: the estimate is multiplied by (I - h γ_0 ∂F/∂x)⁻¹, which keeps it bounded for stiff F; None for an
            estimate that is bounded already.
        controller: how adaptive steps are picked where nothing is said of it, a name of `controllers`.
        dense: rows of polynomial coefficients of the dense output: x(t + θh) = x + h Σ_i k_i Σ_j dense[i][j] θ^(j+1);
            None for cubic Hermite interpolation.
        reference: the paper.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_error: tuple[float, ...] | None = None
    error_order: int | None = None
    error_first: float = 0.0
    filter: float | None = None
    dense: tuple[tuple[float, ...], ...] | None = None
    controller: str = "PI6020"
    reference: str = ""

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)

    @property
    def damps(self) -> bool:
        """Whether very stiff parts of the state are made smaller by a step: |R(z)| < 1 for z to -∞, with the stability
        function R(z) = 1 + z bᵀ (I - z a)⁻¹ 1."""
        z, one = -1e9, np.ones(self.stages)
        growth = 1 + z * np.dot(self.b, np.linalg.solve(np.eye(self.stages) - z * np.array(self.a), one))
        return abs(growth) < 1 / 2

    @property
    def used(self) -> int:
        """Number of stages up to the last one that x⁺ depends on; what comes after them is for the error."""
        return max(i for i, b in enumerate(self.b) if b != 0) + 1

    @cached_property
    def guesses(self) -> tuple[tuple[float, ...], ...]:
        """Where the search for each stage begins that is solved by itself: weights of the stages before it.

        k_i is about Σ_j k_j ℓ_j(c_i) with Lagrange's ℓ_j on the nodes of the last few stages, one at each c.
        """
        rows = []
        for i, end in enumerate(self.c):
            last = {c: j for j, c in enumerate(self.c[:i])}
            nodes = dict(sorted(last.items(), key=lambda node: node[1])[-GUESSED_FROM:])
            row = [0.0] * i
            for c, j in nodes.items():
                row[j] = prod((end - other) / (c - other) for other in nodes if other != c)
            rows.append(tuple(row))
        return tuple(rows)

    @property
    def dense_rows(self) -> tuple[tuple[float, ...], ...]:
        """Rows of the stages that the dense output uses: those of the step."""
        return self.a

    @property
    def coupled(self) -> bool:
        """Whether the stages have to be solved together."""
        return any(weight != 0 for i, row in enumerate(self.a) for weight in row[i + 1 :])

    @property
    def explicit_first(self) -> bool:
        """Whether the first stage is F(t, x)."""
        return not any(self.a[0])

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage of x⁺ ends where the step ends, and is F(t + h, x⁺)."""
        return self.c[self.used - 1] == 1 and self.a[self.used - 1] == self.b


@lru_cache
def _collocated(c: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """a_ij = ∫_0^{c_i} ℓ_j, and the coefficients of ∫_0^θ ℓ_j without the constant, for Lagrange's ℓ_j on nodes c."""
    lagrange = np.linalg.inv(np.vander(c, increasing=True)).T
    integrals = lagrange / np.arange(1, len(c) + 1)
    powers = np.array(c)[:, None] ** np.arange(1, len(c) + 1)
    return powers @ integrals.T, integrals


def collocation(name: str, order: int, c: Sequence[float], reference: str, **error: object) -> ImplicitTableau:
    """The collocation method with abscissae c; its polynomial is the dense output."""
    c = tuple(map(float, c))
    a, integrals = _collocated(c)
    b = integrals.sum(1)
    if c[-1] == 1:
        a[-1] = b
    if c[0] == 0:
        a[0] = 0
    rows = tuple(tuple(map(float, row)) for row in a)
    dense = tuple(tuple(map(float, row)) for row in integrals)
    return ImplicitTableau(name, order, c, rows, tuple(map(float, b)), dense=dense, reference=reference, **error)  # type: ignore[arg-type]


IMPLICIT: Registry[ImplicitTableau] = Registry("solver")


def _add(tableau: ImplicitTableau) -> None:
    IMPLICIT.add(tableau.name, tableau)


# The estimate is the difference to the trapezoidal rule, h/2 (k_1 - F(t, x)).
_add(
    collocation(
        "implicit_euler",
        1,
        (1,),
        "Cauchy 1824 (backward Euler)",
        b_error=(0.5,),
        error_order=2,
        error_first=-0.5,
        filter=1.0,
    )
)
_add(
    replace(
        collocation("implicit_midpoint", 2, (1 / 2,), "Gauss-Legendre with one stage; Hairer, Lubich and Wanner 2006"),
        dense=None,  # instead of the chord
    )
)
# The estimate is the difference to Simpson's rule, h/3 (k_1 - 2 k_3 + k_2) = h³/12 x⁽³⁾ + O(h⁴), with a third stage in
# the middle. That is implicit, with the diagonal of the second: an explicit one, at the middle of Hermite's cubic, is
# h (k_1 - k_2) / 8 away from the mean of x and x⁺, which a stiff F makes large.
_add(
    ImplicitTableau(
        name="trapezoid",
        order=2,
        c=(0, 1, 1 / 2),
        a=((0, 0, 0), (1 / 2, 1 / 2, 0), (1 / 8, -1 / 8, 1 / 2)),
        b=(1 / 2, 1 / 2, 0),
        b_error=(1 / 3, 1 / 3, -2 / 3),
        error_order=3,
        filter=1 / 2,
        dense=((1, -1 / 2), (0, 1 / 2), (0, 0)),
        reference="Lobatto IIIA with two stages (Crank and Nicolson 1947)",
    )
)
_add(collocation("gl4", 4, (1 / 2 - sqrt(3) / 6, 1 / 2 + sqrt(3) / 6), "Hammer and Hollingsworth 1955 (Gauss)"))
_add(collocation("gl6", 6, (1 / 2 - sqrt(15) / 10, 1 / 2, 1 / 2 + sqrt(15) / 10), "Kuntzmann 1961; Butcher 1964"))
_add(collocation("radau3", 3, (1 / 3, 1), "Ehle 1969 (Radau IIA with two stages)"))

_radau = ((4 - sqrt(6)) / 10, (4 + sqrt(6)) / 10, 1.0)
_eigenvalue = 1 / (3 + 3 ** (2 / 3) - 3 ** (1 / 3))  # the real one of the matrix a
_weights = np.array([-13 - 7 * sqrt(6), -13 + 7 * sqrt(6), -1]) / 3
_add(
    collocation(
        "radau5",
        5,
        _radau,
        "Ehle 1969; Hairer and Wanner 1996, section IV.8 (Radau IIA)",
        b_error=tuple(map(float, _eigenvalue * _weights @ _collocated(_radau)[0])),
        error_order=4,
        error_first=_eigenvalue,
        filter=_eigenvalue,
    )
)

# The estimate is the difference to a second-order method with the same stages; of those, the one for which it is the
# error itself where F is linear.
_g = 1 - sqrt(2) / 2
_add(
    ImplicitTableau(
        name="sdirk2",
        order=2,
        c=(0, _g, 1),
        a=((0, 0, 0), (0, _g, 0), (0, 1 - _g, _g)),
        b=(0, 1 - _g, _g),
        b_error=(2 / 3 * (1 - _g), -2 / 3, 2 / 3 * _g),
        error_order=3,
        filter=_g,
        reference="Alexander 1977",
    )
)
_d, _w = 1 - sqrt(2) / 2, sqrt(2) / 4
_add(
    ImplicitTableau(
        name="trbdf2",
        order=2,
        c=(0, 2 * _d, 1),
        a=((0, 0, 0), (_d, _d, 0), (_w, _w, _d)),
        b=(_w, _w, _d),
        b_error=(_w - (1 - _w) / 3, _w - (3 * _w + 1) / 3, _d - _d / 3),
        error_order=3,
        filter=_d,
        reference="Bank et al. 1985; Hosea and Shampine 1996",
    )
)
_g = 0.43586652150845967  # 6 g³ - 18 g² + 9 g - 1 = 0
_third = ((-4 * _g**2 + 6 * _g - 1) / (4 * _g), (1 - 2 * _g) / (4 * _g), _g, 0.0)
_last = (
    (6 * _g - 1) / (12 * _g),
    -1 / ((24 * _g - 12) * _g),
    (-6 * _g**2 + 6 * _g - 1) / (6 * _g - 3),
    _g,
)
_add(
    ImplicitTableau(
        name="kvaerno3",
        order=3,
        c=(0, 2 * _g, 1, 1),
        a=((0, 0, 0, 0), (_g, _g, 0, 0), _third, _last),
        b=_last,
        b_error=tuple(p - q for p, q in zip(_last, _third, strict=True)),
        error_order=3,
        reference="Kværnø 2004 (ESDIRK 3/2)",
    )
)
_g = 0.5728160625  # of the method that goes on with its last stage
_p, _q, _r = 12 * _g**2 - 6 * _g + 1, 3 * _g - 1, 12 * _g**2 - 9 * _g + 2
_rows = (
    (),
    (_g,),
    (
        (144 * _g**4 - 180 * _g**3 + 81 * _g**2 - 15 * _g + 1) * _g / _p**2,
        (-36 * _g**3 + 39 * _g**2 - 15 * _g + 2) * _g / _p**2,
    ),
    (
        (-144 * _g**5 + 396 * _g**4 - 330 * _g**3 + 117 * _g**2 - 18 * _g + 1) / (12 * _g**2 * _r),
        (72 * _g**4 - 126 * _g**3 + 69 * _g**2 - 15 * _g + 1) / (12 * _g**2 * _q),
        (-6 * _g**2 + 6 * _g - 1) * _p**2 / (12 * _g**2 * _r * _q),
    ),
    (
        (288 * _g**4 - 312 * _g**3 + 120 * _g**2 - 18 * _g + 1) / (48 * _g**2 * _r),
        (24 * _g**2 - 12 * _g + 1) / (48 * _g**2 * _q),
        -(_p**3) / (48 * _g**2 * _q * _r * (6 * _g**2 - 6 * _g + 1)),
        (-24 * _g**3 + 36 * _g**2 - 12 * _g + 1) / (24 * _g**2 - 24 * _g + 4),
    ),
)
_rows = tuple((*row, _g if row else 0.0, *(0.0,) * (4 - len(row))) for row in _rows)
_add(
    ImplicitTableau(
        name="kvaerno4",
        order=4,
        c=(0, 2 * _g, sum(_rows[2]), 1, 1),
        a=_rows,
        b=_rows[4],
        b_error=tuple(p - q for p, q in zip(_rows[4], _rows[3], strict=True)),
        error_order=4,
        reference="Kværnø 2004 (ESDIRK 4/3)",
    )
)
_g = 0.26
_rows = (
    (),
    (_g,),
    (0.13, 0.84033320996790809),
    (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
    (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
    (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
    (0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403, 0.06962479448202728),
)
_rows = tuple((*row, _g if row else 0.0, *(0.0,) * (6 - len(row))) for row in _rows)
_add(
    ImplicitTableau(
        name="kvaerno5",
        order=5,
        c=(0, 2 * _g, *(sum(row) for row in _rows[2:5]), 1, 1),
        a=_rows,
        b=_rows[6],
        b_error=tuple(p - q for p, q in zip(_rows[6], _rows[5], strict=True)),
        error_order=5,
        controller="PI6020_short",
        dense=(
            (1, -2.1280258149853393, 1.8024416770762923, -0.5378183503145499),
            (0, 0, 0, 0),
            (0, 0.4850051293281723, -1.1898866105178785, 0.6499123932243225),
            (0, -2.5430491190771516, 4.921353169021471, -2.4194903172275257),
            (0, 3.557111594224488, -4.594490992488305, 1.6673124472539862),
            (0, 0.38996850019519913, -0.5014378224622884, 0.18109411674911713),
            (0, 0.23898971031464056, -0.43797942062929063, 0.45898971031464697),
        ),
        reference="Kværnø 2004 (ESDIRK 5/4)",
    )
)

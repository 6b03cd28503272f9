"""Butcher tableaux of the explicit Runge-Kutta methods, as data.

    k_i = F(t + c_i h, x + h Σ_{j<i} a_ij k_j),   x⁺ = x + h Σ_i b_i k_i,   error = h Σ_i (b_i - b̂_i) k_i

To add a method, add an entry to `TABLEAUS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from odenet.registry import Registry


@dataclass(frozen=True)
class Tableau:
    """One explicit Runge-Kutta method.

    Attributes:
        name: its name in the field.
        order: order of accuracy p of x⁺.
        c: abscissae, one per stage.
        a: strictly lower triangular coefficients, row i with i entries.
        b: weights of x⁺.
        b_error: b - b̂ of the embedded method, or None. With FSAL methods the last stage is F(t + h, x⁺).
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
    dense: tuple[tuple[float, ...], ...] | None = None
    reference: str = ""

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is F(t + h, x⁺), the first stage of the next step."""
        return self.stages > 1 and self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]


TABLEAUS: Registry[Tableau] = Registry("solver")


def _add(tableau: Tableau) -> None:
    TABLEAUS.add(tableau.name, tableau)


_add(
    Tableau(
        name="euler",
        order=1,
        c=(0,),
        a=((),),
        b=(1,),
        dense=((1,),),
        reference="Euler 1768; an Euler step is a residual block (He et al. 2015)",
    )
)
_add(
    Tableau(
        name="midpoint",
        order=2,
        c=(0, 1 / 2),
        a=((), (1 / 2,)),
        b=(0, 1),
        reference="Runge 1895",
    )
)
_add(
    Tableau(
        name="heun2",
        order=2,
        c=(0, 1),
        a=((), (1,)),
        b=(1 / 2, 1 / 2),
        reference="Heun 1900 (explicit trapezoidal rule)",
    )
)
_add(
    Tableau(
        name="ralston2",
        order=2,
        c=(0, 2 / 3),
        a=((), (2 / 3,)),
        b=(1 / 4, 3 / 4),
        reference="Ralston 1962 (smallest error bound of the second-order methods)",
    )
)
_add(
    Tableau(
        name="heun3",
        order=3,
        c=(0, 1 / 3, 2 / 3),
        a=((), (1 / 3,), (0, 2 / 3)),
        b=(1 / 4, 0, 3 / 4),
        reference="Heun 1900",
    )
)
_add(
    Tableau(
        name="ssprk3",
        order=3,
        c=(0, 1, 1 / 2),
        a=((), (1,), (1 / 4, 1 / 4)),
        b=(1 / 6, 1 / 6, 2 / 3),
        reference="Shu and Osher 1988 (strong-stability preserving)",
    )
)
_add(
    Tableau(
        name="rk4",
        order=4,
        c=(0, 1 / 2, 1 / 2, 1),
        a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        reference="Kutta 1901 (the classic method)",
    )
)
_add(
    Tableau(
        name="rk4_38",
        order=4,
        c=(0, 1 / 3, 2 / 3, 1),
        a=((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        reference="Kutta 1901 (the 3/8 rule)",
    )
)
_add(
    Tableau(
        name="dopri5",
        order=5,
        c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
        b_error=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        dense=(
            (1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0, 0, 0, 0),
            (0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
            (0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
            (0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
        reference="Dormand and Prince 1980; dense output of Shampine 1986",
    )
)

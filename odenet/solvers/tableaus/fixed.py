"""Methods without an error estimate: they walk fixed steps.

To add one, add an entry.
"""

from odenet.solvers.tableau import Tableau

METHODS = (
    Tableau(
        name="euler",
        order=1,
        c=(0,),
        a=((),),
        b=(1,),
        dense=((1,),),
        reference="Euler 1768; an Euler step is a residual block (He et al. 2015)",
    ),
    Tableau(
        name="midpoint",
        order=2,
        c=(0, 1 / 2),
        a=((), (1 / 2,)),
        b=(0, 1),
        reference="Runge 1895",
    ),
    Tableau(
        name="heun2",
        order=2,
        c=(0, 1),
        a=((), (1,)),
        b=(1 / 2, 1 / 2),
        reference="Heun 1900 (explicit trapezoidal rule)",
    ),
    Tableau(
        name="ralston2",
        order=2,
        c=(0, 2 / 3),
        a=((), (2 / 3,)),
        b=(1 / 4, 3 / 4),
        reference="Ralston 1962 (smallest error bound of the second-order methods)",
    ),
    Tableau(
        name="heun3",
        order=3,
        c=(0, 1 / 3, 2 / 3),
        a=((), (1 / 3,), (0, 2 / 3)),
        b=(1 / 4, 0, 3 / 4),
        reference="Heun 1900",
    ),
    Tableau(
        name="ssprk3",
        order=3,
        c=(0, 1, 1 / 2),
        a=((), (1,), (1 / 4, 1 / 4)),
        b=(1 / 6, 1 / 6, 2 / 3),
        reference="Shu and Osher 1988 (strong-stability preserving)",
    ),
    Tableau(
        name="rk4",
        order=4,
        c=(0, 1 / 2, 1 / 2, 1),
        a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        reference="Kutta 1901 (the classic method)",
    ),
    Tableau(
        name="rk4_38",
        order=4,
        c=(0, 1 / 3, 2 / 3, 1),
        a=((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        reference="Kutta 1901 (the 3/8 rule)",
    ),
)

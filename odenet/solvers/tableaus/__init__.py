"""The explicit Runge-Kutta methods, as data. To add one, add an entry to one of these files."""

from odenet.registry import Registry
from odenet.solvers.tableau import Tableau
from odenet.solvers.tableaus import embedded, fixed
from odenet.solvers.tableaus.dopri8 import DOPRI8
from odenet.solvers.tableaus.vern7 import VERN7

TABLEAUS: Registry[Tableau] = Registry("solver")
for _tableau in (*fixed.METHODS, *embedded.METHODS, VERN7, DOPRI8):
    TABLEAUS.add(_tableau.name, _tableau)

__all__ = ["TABLEAUS"]

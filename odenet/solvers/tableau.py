"""The Butcher tableau of a Runge-Kutta method, as data; the methods themselves are in `odenet.solvers.tableaus`.

k_i = F(t + c_i h, x + h Σ_j a_ij k_j),   x⁺ = x + h Σ_i b_i k_i,   error = h Σ_i (b_i - b̂_i) k_i
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """One Runge-Kutta method.

    Attributes:
        name: its name in the field.
        order: order of accuracy p of x⁺.
        c: abscissae, one per stage.
        a: coefficients a_ij, one row per stage; a row may end early, as those of explicit methods do.
        b: weights of x⁺.
        b_error: b - b̂ of the embedded method, or None. With FSAL methods the last stage is F(t + h, x⁺).
        b_coarse: weights of a second, coarser error estimate E_c; the error then counts as |E|² / √(|E|² + |E_c|²/100).
        error_order: q of the error estimate, which falls like h^q; `order` if left out.
        dense: rows of polynomial coefficients of the dense output: x(t + θh) = x + h Σ_i k_i Σ_j dense[i][j] θ^(j+1),
            over the stages that x⁺ depends on, then F(t + h, x⁺), then the further stages; None for cubic Hermite
            interpolation.
        dense_c: abscissae of the further stages of the dense output.
        dense_a: their coefficients, over the same stages as `dense`.
        controller: how adaptive steps are picked where nothing is said of it, a name of `controllers`.
        reference: the paper.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_error: tuple[float, ...] | None = None
    b_coarse: tuple[float, ...] | None = None
    error_order: int | None = None
    dense: tuple[tuple[float, ...], ...] | None = None
    dense_c: tuple[float, ...] = ()
    dense_a: tuple[tuple[float, ...], ...] = ()
    controller: str = "PI6020"
    reference: str = ""

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)

    @property
    def used(self) -> int:
        """Number of stages up to the last one that x⁺ depends on; what comes after them is for the error."""
        return max(i for i, b in enumerate(self.b) if b != 0) + 1

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is F(t + h, x⁺), the first stage of the next step."""
        return self.stages > 1 and self.c[-1] == 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @property
    def dense_rows(self) -> tuple[tuple[float, ...], ...]:
        """Rows of coefficients of all that `dense` weighs: the stages, F(t + h, x⁺), and the further stages."""
        return (*self.a[: self.used], self.b[: self.used], *self.dense_a)

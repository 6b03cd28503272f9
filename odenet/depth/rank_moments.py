"""An optimizer's moments between weights over depth of one rank and of another, by the chain rule of the factors.

Low-rank weights have the coefficients C = Ā Θ, with Ā = [e, A] the profiles, (K, 1 + r), and Θ the modes, (1 + r, n).
From the gradient g = ∂L/∂C, (K, n), that of the factors is

    ∂L/∂Θ = Āᵀ g,   ∂L/∂A = g Θ_{1..r}ᵀ.

Backwards g is known as far as the factors see it: the smallest in L2 over depth that has these two, with G the Gram
matrix of the basis and P = G Ā (Āᵀ G Ā)⁻¹,

    g = P ∂L/∂Θ + (1 - P Āᵀ) (∂L/∂A - P ∂L/∂Θ Θ_{1..r}ᵀ) (Θ_{1..r} Θ_{1..r}ᵀ)⁻¹ Θ_{1..r}.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RANK = 1e-9  # of the largest singular value: below it there is none


class Factors(NamedTuple):
    """Profiles and modes of one tensor of F.

    Attributes:
        A: Ā, (K, 1 + r).
        modes: Θ, (1 + r, n).
    """

    A: Tensor
    modes: Tensor

    def pulled(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂Θ and ∂L/∂A from ∂L/∂C."""
        return self.A.mH @ g, g @ self.modes[1:].mH

    def spread(self, of_modes: Tensor, of_profiles: Tensor, G: Tensor) -> Tensor:
        """The smallest ∂L/∂C that has these gradients of the factors."""
        P, modes = self._means(G), self.modes[1:]
        g = P @ of_modes
        rest = of_profiles - g @ modes.mH
        return g + (rest - P @ (self.A.mH @ rest)) @ torch.linalg.pinv(modes, rtol=RANK).mH

    def pulled_squares(self, v: Tensor, least: Tensor | None) -> tuple[Tensor, Tensor]:
        """Second moments of the factors.

        Over depth as between two bases, (|Āᵀ| √v)². A profile's gradient sums over all entries of a tensor, of which
        the means of the squares are known and not the correlations: Σ v |Θ|², as if there were none, and at least
        `least`, which the square of the mean asks for.
        """
        of_modes = (self.A.abs().mT @ v.clamp_min(0).sqrt()) ** 2
        of_profiles = v @ (self.modes[1:].abs() ** 2).mT
        return of_modes, of_profiles if least is None else torch.maximum(of_profiles, least)

    def spread_squares(self, of_modes: Tensor, G: Tensor) -> Tensor:
        """Second moments of ∂L/∂C, from those of the modes: (|P| √v)²."""
        return (self._means(G).abs() @ of_modes.clamp_min(0).sqrt()) ** 2

    def _means(self, G: Tensor) -> Tensor:
        G = G.to(self.A.dtype)
        return G @ self.A @ torch.linalg.pinv(self.A.mH @ G @ self.A, rtol=RANK, hermitian=True)

"""Weights of low rank over depth: one set for all depths, and r more whose share changes with depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from odenet.depth.bases import Basis, check_count
from odenet.depth.coefficients import Coefficients, drawn, mapped, stacked, statistics_of
from odenet.depth.constant import PiecewiseConstantKind
from odenet.depth.expansion import Expansion, contract
from odenet.depth.kinds import ExpansionKind, piecewise_linear, sized
from odenet.depth.projection import draw, gram, means, ones, report, residual, transfer
from odenet.depth.weights import DepthWeights, ResidualFunction, check_module, check_residual, depth_weights
from odenet.errors import InputError


class LowRank(Expansion):
    """θ(t) = Θ_0 + Σ_{j=1..r} a_j(t) Θ_j for each parameter, with profiles a_j = Σ_k φ_k A_kj in a basis of depth.

    (1 + r) sets of F's parameters and r K numbers for each of its tensors, instead of K sets. Running statistics of
    norms are expanded in the basis in full.

    Args:
        F: a module of the structure of F; it is copied.
        basis: the functions of depth that the profiles are made of.
        modes: for each parameter Θ, (1 + r, *shape); for each running statistic its coefficients, (K, *shape).
        profiles: for each parameter A, (K, r).
    """

    def __init__(self, F: nn.Module, basis: Basis, modes: Mapping[str, Tensor], profiles: Mapping[str, Tensor]):
        super().__init__(F, basis, modes)
        given = dict(self.F.named_parameters())
        self._row = {name: row for row, name in enumerate(given)}
        self.profiles = nn.ParameterList(
            nn.Parameter(profiles[name].to(p.device, p.dtype), p.requires_grad) for name, p in given.items()
        )

    @property
    def rank(self) -> int:
        """r."""
        return self.profiles[0].shape[1]

    @property
    def kind(self) -> LowRankKind:
        return LowRankKind(self.rank, self._basis)

    def contract(self, name: str, C: Tensor, phi: Tensor, first: int) -> Tensor:
        if name not in self._row:
            return super().contract(name, C, phi, first)
        a = contract(phi, self.profiles[self._row[name]], first)
        return contract(torch.cat([torch.ones_like(a[:1]), a]), C)

    def coefficients(self) -> Coefficients:
        e = ones(self._basis)[:, None]
        found = super().coefficients()
        for name, row in self._row.items():
            A = torch.cat([e, self.profiles[row].detach().to("cpu", e.dtype)], 1)
            found[name] = mapped(A, {name: found[name]})[name]
        return found

    def moved(self, basis: Basis) -> LowRank:
        """The same modes with their profiles projected to another basis, as the best of that rank there."""
        A, held = transfer(self._basis, basis), super().coefficients()
        modes = {name: C if name in self._row else mapped(A, {name: C})[name] for name, C in held.items()}
        profiles = {name: mapped(A, {name: self.profiles[row].detach()})[name] for name, row in self._row.items()}
        moved = LowRank(self.F, basis, modes, profiles)
        moved.residual = report(residual(self._basis, basis, self.coefficients()))
        return moved


@dataclass(frozen=True)
class LowRankKind:
    """Weights of low rank over depth, to be given as `weights=`.

    Args:
        rank: r.
        basis: the functions of depth.
    """

    rank: int
    basis: Basis

    def __post_init__(self) -> None:
        check_count("the rank", self.rank)

    def __call__(self, F: ResidualFunction) -> LowRank:
        check_residual(F)
        F = check_module(F)
        n = self.rank + 1
        draws = stacked(drawn(F, n))
        Q = _around_the_mean(n)
        W = draw(self.basis, n)
        modes = mapped(torch.cat([torch.full((1, n), 1 / n, dtype=Q.dtype), Q.T]), draws)
        modes |= mapped(W, {name: draws[name] for name in statistics_of(F)})
        return LowRank(F, self.basis, modes, {name: W @ Q for name, _ in F.named_parameters()})

    def project(self, weights: DepthWeights) -> LowRank:
        if isinstance(weights, LowRank) and weights.rank == self.rank:
            return weights.moved(self.basis)
        coefficients = weights.coefficients()
        template, found = weights.template, residual(weights.basis, self.basis, coefficients)
        new = mapped(transfer(weights.basis, self.basis), coefficients)
        profiles: dict[str, Tensor] = {}
        for name, _ in template.named_parameters():
            new[name], profiles[name], cut = _truncated(new[name], self.basis, self.rank)
            found[name] = (found[name][0] + cut, found[name][1])
        low = LowRank(template, self.basis, new, profiles)
        low.residual = report(found)
        return low

    def refined(self, k: int) -> LowRankKind:
        return replace(self, basis=self.basis.refined(k))

    def resized(self, n: int) -> LowRankKind:
        return replace(self, basis=self.basis.resized(n))


def _around_the_mean(n: int) -> Tensor:
    """(n, n - 1) orthonormal columns that sum to zero."""
    columns = torch.eye(n, dtype=torch.float64) - 1 / n
    return torch.linalg.qr(columns[:, : n - 1]).Q


def _truncated(C: Tensor, basis: Basis, rank: int) -> tuple[Tensor, Tensor, float]:
    """Modes, profiles, and the squared L2 norm of what is cut off, of the best approximation of a rank.

    The mean over depth is Θ_0; what varies around it, a matrix in an orthonormal basis of depth, keeps its largest
    singular values.

    Reference:
        Eckart and Young 1936, The approximation of one matrix by another of lower rank.
    """
    flat = C.reshape(len(C), -1).to("cpu", torch.complex128 if C.is_complex() else torch.float64)
    e, mean = ones(basis).to(flat.dtype), means(basis).to(flat.dtype) @ flat
    L = torch.linalg.cholesky(gram(basis)).to(flat.dtype)
    U, S, Vh = torch.linalg.svd(L.mT @ (flat - torch.outer(e, mean)), full_matrices=False)
    kept = min(rank, len(S))
    A = torch.zeros(basis.size, rank, dtype=flat.dtype)
    A[:, :kept] = torch.linalg.solve_triangular(L.mT, U[:, :kept], upper=True)
    modes = flat.new_zeros(1 + rank, flat.shape[1])
    modes[0], modes[1 : 1 + kept] = mean, S[:kept, None] * Vh[:kept]
    return modes.reshape(1 + rank, *C.shape[1:]).to(C.device, C.dtype), A, float((S[kept:] ** 2).sum())


def low_rank(r: int, base: ExpansionKind | PiecewiseConstantKind) -> LowRankKind:
    """Weights with one set for all depths and r more whose share changes with depth: θ(t) = Θ_0 + Σ_j a_j(t) Θ_j.

    Drawn with the variance over depth that F's own initialisation has.

    Args:
        r: rank, at least 1.
        base: the basis of the profiles a_j, such as `odenet.depth.bspline(3, 8)`, or for layers
            `odenet.depth.piecewise_constant(8)`.

    Raises:
        InputError: an argument that cannot be used.
    """
    if not isinstance(base, ExpansionKind | PiecewiseConstantKind):
        raise InputError(f"low_rank takes a basis such as odenet.depth.bspline(3, 8), got {base!r}")
    return LowRankKind(r, base.basis)


@depth_weights.register("low_rank")
def _low_rank(F: ResidualFunction, steps: int | None) -> DepthWeights:
    """One set of weights for all depths, and one more whose share is linear between nodes of depth."""
    return low_rank(1, piecewise_linear(sized("low_rank", steps, "low_rank(2, base)")))(F)

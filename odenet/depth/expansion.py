"""Weights in a basis of depth: θ(t) = Σ_k φ_k(s) C_k, s = (t - t0)/(t1 - t0), for any module as F."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from odenet.depth.bases import Basis, BSpline, Chebyshev, Fourier
from odenet.depth.coefficients import (
    VARIANCE,
    Coefficients,
    drawn,
    filled,
    mapped,
    slots_of,
    stacked,
    statistics_of,
    tensors_of,
)
from odenet.depth.projection import draw, ones, report, residual, transfer
from odenet.depth.statistics import StatisticsOverDepth
from odenet.depth.weights import DepthWeights, ResidualFunction, check_module, check_residual, depth_weights
from odenet.errors import InputError

INITS = ("drawn", "tied")


class Expansion(DepthWeights):
    """F with its parameters, and the running statistics of its norms, expanded in a basis of depth.

    `F` is a copy of the module in which each such tensor is stacked to (K, *shape), under the name that it has in F. An
    evaluation contracts it with the values of the basis and calls F with the result (`torch.func.functional_call`).

    Args:
        F: a module of the structure of F; it is copied.
        basis: the functions of depth.
        coefficients: for each tensor, (K, *shape).
    """

    varies = True

    def __init__(self, F: nn.Module, basis: Basis, coefficients: Mapping[str, Tensor]):
        super().__init__()
        self._basis, self.knots = basis, basis.knots
        self.F = filled(F, coefficients)
        self._statistics = statistics_of(self.F)
        self._slots = slots_of(self.F)
        self.gathered = StatisticsOverDepth(self.F, self._statistics, basis.size)
        self._interval: tuple[float, float] | None = None
        self._pieces: list[ExpandedPiece] = []

    def piece(self, index: int, t0: float = 0.0, t1: float = 1.0) -> ExpandedPiece:
        if self._interval != (t0, t1):
            edges = [t0, *(t0 + (t1 - t0) * knot for knot in self.knots), t1]
            self._pieces = [ExpandedPiece(self, i, edges[i], edges[i + 1]) for i in range(self.pieces)]
            self._interval = (t0, t1)
        return self._pieces[index]

    @property
    def kind(self) -> ExpansionKind:
        return ExpansionKind(self._basis)

    @property
    def basis(self) -> Basis:
        return self._basis

    @property
    def template(self) -> nn.Module:
        return self.F

    def coefficients(self) -> Coefficients:
        return {name: tensor.detach() for name, tensor in tensors_of(self.F).items()}

    def weights_at(self, phi: Tensor, first: int) -> dict[str, Tensor]:
        """θ(t), by name; a tensor that F uses under several names is there under each.

        Args:
            phi: (count,) values of the functions that are not zero.
            first: index of the first of them.
        """
        with _full_precision(phi):
            return {
                name: value
                for names, owner, key in self._slots
                for value in [self.contract(names[0], getattr(owner, key), phi, first)]
                for name in names
            }

    def call(self, phi: Tensor, first: int, *args: Any) -> Tensor:
        """F(*args) with the weights of the depth at which the functions have the values phi."""
        tensors = self.weights_at(phi, first)
        k = functional_call(self.F, tensors, args, tie_weights=False)
        self.gathered.add(first, phi, tensors)
        return k

    def contract(self, name: str, C: Tensor, phi: Tensor, first: int) -> Tensor:
        """One tensor of θ(t)."""
        value = contract(phi, C, first)
        return value.clamp_min(0) if name.endswith(VARIANCE) and name in self._statistics else value

    def extra_repr(self) -> str:
        return str(self._basis)


class ExpandedPiece:
    """F(t, x, *args) on a piece of depth, with weights that vary in t.

    With one t a sample, shape (batch,), each sample is evaluated with weights of its own (`torch.vmap`).

    Args:
        weights: whose piece it is.
        index: of the piece.
        start: time at which it begins.
        end: time at which it ends.
    """

    def __init__(self, weights: Expansion, index: int, start: float, end: float):
        self.weights, self.start = weights, start
        self.scale = 1 / (end - start) if end != start else 0.0
        self.first, self.count = weights.basis.active(index)
        self.table = weights.basis.table(index)

    def values(self, t: Tensor) -> Tensor:
        """Values of the active functions at times t, shape (*t.shape, count)."""
        table = self.table
        if table.device != t.device or table.dtype != t.dtype:
            table = table.to(t.device, t.dtype)
            if type(table) is Tensor:  # not one that stands for it while something is traced
                self.table = table
        return self.weights.basis.values((t - self.start) * self.scale, table)

    def __call__(self, t: Tensor, x: Tensor, *args: Any) -> Tensor:
        phi = self.values(t)
        if t.dim():
            return self._of_samples(phi, t, x, args)
        return self.weights.call(phi, self.first, t, x, *args)

    def _of_samples(self, phi: Tensor, t: Tensor, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        weights = self.weights
        if args:
            raise InputError(
                "with weights that vary within a piece of depth and one t a sample, F takes no args; let F hold them, "
                "use weights that are constant on pieces, or per_sample=False"
            )
        if weights.gathered.training:
            raise InputError(
                "batch norm in training mode mixes the samples, whose t differ; use norm='group', or per_sample=False"
            )

        def one(phi: Tensor, t: Tensor, x: Any) -> Any:
            k = weights.call(phi, self.first, t, tree_map(lambda part: part.unsqueeze(0), x))
            return tree_map(lambda part: part.squeeze(0), k)

        return torch.vmap(one, randomness="different")(phi, t, x)


def contract(phi: Tensor, C: Tensor, first: int = 0) -> Tensor:
    """Σ_k φ_k C_{first+k}: (count,), (K, *shape) -> shape."""
    count = phi.shape[-1]
    if count != len(C):
        C = C.narrow(0, first, count)
    return (phi.to(C.dtype) @ C.reshape(count, -1)).view(C.shape[1:])


@contextmanager
def _full_precision(like: Tensor) -> Iterator[None]:
    """Weights are put together in their own precision; it is F that runs in a lower one."""
    kind = like.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield


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

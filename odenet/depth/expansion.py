"""Weights in a basis of depth: θ(t) = Σ_k φ_k(s) C_k, s = (t - t0)/(t1 - t0), for any module as F."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._C import _functorch  # type: ignore[attr-defined]
from torch.func import functional_call
from torch.utils._pytree import tree_map

from odenet.depth.bases import Basis
from odenet.depth.coefficients import VARIANCE, Coefficients, filled, slots_of, statistics_of, tensors_of
from odenet.depth.statistics import StatisticsOverDepth
from odenet.depth.weights import DepthWeights
from odenet.errors import InputError

if TYPE_CHECKING:
    from odenet.depth.kinds import ExpansionKind


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
        from odenet.depth.kinds import ExpansionKind

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
        table = weights.basis.table(index)
        self.tables = {table.dtype: table}

    def values(self, t: Tensor) -> Tensor:
        """Values of the active functions at times t, shape (*t.shape, count)."""
        table = self.tables.get(t.dtype)
        if table is None or table.device != t.device:
            table = next(iter(self.tables.values())).to(t.device, t.dtype)
            if type(table) is Tensor and _functorch.peek_interpreter_stack() is None:  # not one that stands for it
                self.tables[t.dtype] = table
        u = (t.unsqueeze(-1) - self.start) * self.scale  # of a 0-d t times a number the forward mode makes float64
        return self.weights.basis.values(u, table).squeeze(-2)

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

"""Newton's method for the stages of implicit steps, sample by sample: each has its own h, Jacobian and convergence.

The rules are those of `odenet.solvers.newton`, row by row, with a dense Jacobian of each sample. A sample whose
iteration has ended is evaluated no more. Nothing that is decided for a sample depends on the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenet.solvers.control import scale
from odenet.solvers.explicit import combine
from odenet.solvers.jacobian import taped
from odenet.solvers.newton import ITERATIONS, LEAST_DAMPING, PATIENCE, ROUNDING, SHARE, SINGULAR, TRUSTED
from odenet.solvers.per_sample.control import on_host, rms_each
from odenet.solvers.per_sample.field import Rows


def flat_rows(x: Tensor) -> Tensor:
    """States of samples as real vectors, (rows, m)."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(len(x), -1)


def shaped_rows(v: Tensor, like: Tensor) -> Tensor:
    """The states of `like`'s shape and dtype that real vectors (rows, m) hold."""
    if like.is_complex():
        pairs = v.reshape(len(v), *like.shape[1:], 2).to(like.dtype.to_real())
        return torch.view_as_complex(pairs.contiguous())
    return v.reshape(len(v), *like.shape[1:]).to(like.dtype)


def jacobians(value: Tensor, at: Tensor) -> Tensor:
    """∂value_i/∂at_i of each sample i, (rows, m, m), from m vector-Jacobian products for all samples together."""
    rows, m = flat_rows(value.detach()).shape
    if not value.requires_grad or not rows:
        return torch.zeros(rows, m, m, dtype=value.dtype.to_real(), device=value.device)
    eye = torch.eye(m, dtype=value.dtype.to_real(), device=value.device)
    seeds = [shaped_rows(eye[j].expand(rows, m), value) for j in range(m)]
    found = [torch.autograd.grad(value, at, seed, retain_graph=True, allow_unused=True)[0] for seed in seeds]
    if found[0] is None:
        return torch.zeros(rows, m, m, dtype=value.dtype.to_real(), device=value.device)
    return torch.stack([flat_rows(row) for row in found if row is not None], 1)


class SampleEquations(NamedTuple):
    """K_i = F(t_i, base + h Σ_j a_ij K_j) for one stage, or for several that are solved together, of each sample.

    Attributes:
        f: F for the samples.
        times: t_i, each (rows,).
        base: what the steps have so far, (rows, ...).
        h: sizes of the steps, of a shape that broadcasts against the state.
        a: rows of coefficients.
    """

    f: Rows
    times: Sequence[Tensor]
    base: Tensor
    h: Tensor
    a: Sequence[Sequence[float]]

    def rows(self, rows: Tensor) -> SampleEquations:
        """Those of some of the samples."""
        index = rows.to(self.base.device)
        times = [t.index_select(0, index) for t in self.times]
        return SampleEquations(
            self.f.select(rows), times, self.base.index_select(0, index), self.h.index_select(0, index), self.a
        )

    def point(self, i: int, K: Tensor) -> Tensor:
        """Where F is evaluated for stage i."""
        return combine(self.base, self.h, self.a[i], list(K)) if any(self.a[i]) else self.base

    def __call__(self, K: Tensor) -> Tensor:
        """G(K)."""
        return torch.stack([self.f(t, self.point(i, K)) for i, t in enumerate(self.times)])

    def matrix(self, J: Sequence[Tensor]) -> Tensor:
        """I - h a⊗J, (rows, g m, g m)."""
        h = self.h.reshape(-1, 1, 1)
        blocks = [torch.cat([-h * w * part for w in row], 2) for row, part in zip(self.a, J, strict=True)]
        matrix = torch.cat(blocks, 1)
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        return matrix

    def linearised(self, K: Tensor) -> tuple[Tensor, list[Tensor]]:
        """G(K) without a graph, and the Jacobians of F at its points."""
        values, found = [], []
        with taped():
            for i, t in enumerate(self.times):
                at = self.point(i, K).detach().requires_grad_()
                value = self.f(t, at)
                found.append(jacobians(value, at))
                values.append(value.detach())
        return torch.stack(values), found


def stacked(K: Tensor) -> Tensor:
    """Stages (g, rows, ...) as real vectors (rows, g m)."""
    return torch.cat([flat_rows(part) for part in K], 1)


def unstacked(v: Tensor, like: Tensor) -> Tensor:
    """Stages of `like`'s shape from real vectors (rows, g m)."""
    return torch.stack([shaped_rows(part, like[0]) for part in v.chunk(len(like), 1)])


def stacked_jacobians(value: Tensor, at: Tensor) -> Tensor:
    """∂value_i/∂at_i of each sample i over all stages, (rows, g m, g m); both are (g, rows, ...)."""
    m = flat_rows(value[0]).shape[1]
    eye = torch.eye(m, dtype=value.dtype.to_real(), device=value.device)
    found = []
    for i in range(len(value)):
        for j in range(m):
            seed = torch.zeros_like(value)
            seed[i] = shaped_rows(eye[j].expand(value.shape[1], m), value[i])
            (row,) = torch.autograd.grad(value, at, seed, retain_graph=True, materialize_grads=True, allow_unused=True)
            found.append(stacked(row.detach()))
    return torch.stack(found, 1)


class Factors:
    """The factorised matrices of the corrections, one a sample, and the Jacobians behind them."""

    def __init__(self, rows: int):
        self.stale = torch.ones(rows, dtype=torch.bool)
        self.first: Tensor | None = None
        self._lu: Tensor | None = None
        self._pivots: Tensor | None = None

    def take(self, rows: Tensor, matrix: Tensor, J: Tensor) -> None:
        """Factorise the matrices of some samples."""
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        if self.first is None:
            count = len(self.stale)
            self.first = J.new_zeros(count, *J.shape[1:])
            self._lu = lu.new_zeros(count, *lu.shape[1:])
            self._pivots = pivots.new_ones(count, *pivots.shape[1:])
        assert self._lu is not None and self._pivots is not None
        index = rows.to(matrix.device)
        self.first = self.first.index_copy(0, index, J)
        self._lu = self._lu.index_copy(0, index, lu)
        self._pivots = self._pivots.index_copy(0, index, pivots)
        self.stale[rows] = False

    def solve(self, rows: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Corrections of some samples, (rows, g m), and whose matrix is singular."""
        assert self._lu is not None and self._pivots is not None
        index = rows.to(residual.device)
        lu, pivots = self._lu.index_select(0, index), self._pivots.index_select(0, index)
        delta = torch.linalg.lu_solve(lu, pivots, residual.to(lu.dtype)[..., None])[..., 0]
        return delta, (lu.diagonal(dim1=1, dim2=2) == 0).any(1)


class SamplePrecision:
    """How small a correction of each sample has to be; as `odenet.solvers.newton.Precision`.

    Args:
        tolerances: (rtol, atol) of an adaptive solve for these samples, or None.
        norm: of each scaled state; None for RMS.
    """

    def __init__(self, tolerances: tuple[Any, Any] | None, norm: Any):
        self.tolerances, self.norm = tolerances, norm or rms_each
        self.iterations = PATIENCE if tolerances is None else ITERATIONS
        self.loose = 1e4 if tolerances is None else 0.3 / SHARE

    def sizes(self, delta: Tensor, K: Tensor, equations: SampleEquations, tolerances: Any) -> Tensor:
        """Sizes of what corrections do to the stages, on the host; 1 is small enough."""
        x, h = equations.base.detach(), equations.h
        rounding = ROUNDING * torch.finfo(x.dtype).eps
        moved = [combine(None, h, row, list(delta)) for row in equations.a]
        if tolerances is not None:
            rtol, atol = tolerances
            weight = scale(x, SHARE * rtol + rounding, SHARE * atol)
            return on_host(torch.stack([self.norm(m / weight) for m in moved]).amax(0))
        taken = [combine(None, h, row, list(K)) for row in equations.a]
        lengths = on_host(torch.stack([rms_each(part) for part in (*moved, *taken, x)]))
        change = lengths[: len(moved)].amax(0)
        whole = torch.maximum(change, lengths[len(moved) :].amax(0))
        return torch.where(change == 0, change, change / (rounding * whole))

    def astray(self, delta: Tensor, K: Tensor, equations: SampleEquations) -> Tensor:
        """As `odenet.solvers.newton.Precision.astray`, for each sample, on the host."""
        x, h = equations.base.detach().abs(), equations.h
        off = [combine(None, h, row, list(delta)).abs() for row in equations.a]
        taken = [combine(None, h, row, list(K)).abs() for row in equations.a]
        far = [(moved > TRUSTED * (x + part)) for moved, part in zip(off, taken, strict=True)]
        return torch.stack(far).any(0).reshape(len(x), -1).any(1).cpu()


def newton_rows(
    equations: SampleEquations,
    K: Tensor,
    factors: Factors,
    precision: SamplePrecision,
    rows: Tensor,
    doubted: bool = False,
) -> tuple[Tensor, Tensor]:
    """K = G(K) from a guess, for some of the samples.

    Args:
        equations: of all samples.
        K: (stages, rows, ...) a guess, without a graph.
        factors: kept from stage to stage of a step.
        precision: when corrections are small enough.
        rows: the samples to solve for, on the host.
        doubted: whether to give up where the first correction says that the guess was far off.

    Returns:
        K, and for each sample what was left, in units of what was asked for: 0 where it converged. (rows,) on the host.
    """
    count = K.shape[1]
    last, damping = torch.full((count,), math.inf).double(), torch.ones(count).double()
    fresh, left = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.float64)
    before, correction = K, torch.zeros_like(K)
    for iteration in range(1, precision.iterations + 1):
        if not len(rows):
            break
        index = rows.to(K.device)
        mine, taking = K.index_select(1, index), factors.stale[rows]
        value = torch.zeros_like(mine)
        for part, take in ((taking.nonzero()[:, 0], True), ((~taking).nonzero()[:, 0], False)):
            if not len(part):
                continue
            own, at = equations.rows(rows[part]), part.to(K.device)
            if take:
                values, J = own.linearised(mine.index_select(1, at))
                factors.take(rows[part], own.matrix(J), J[0])
            else:
                values = own(mine.index_select(1, at))
            value = value.index_copy(1, at, values)
        delta, singular = factors.solve(rows, stacked(value - mine))
        delta = unstacked(delta, mine)
        own = equations.rows(rows)
        tolerances = precision.tolerances
        if tolerances is not None:
            tolerances = tuple(_of_rows(part, index, K.shape[1:]) for part in tolerances)
        size = precision.sizes(delta, mine, own, tolerances)
        rate = torch.where(last[rows] > 0, size / last[rows], 0.0)
        finite = size.isfinite()
        settled = (size <= 1) | ((size <= precision.loose) & (rate > 0.5) & fresh[rows])
        done = settled & ~taking
        hopeless = (last[rows].isinf() & ~finite) | (damping[rows] < LEAST_DAMPING) | (~finite & singular.cpu())
        if doubted and iteration == 1:
            hopeless |= precision.astray(delta, mine, own)
            done &= ~hopeless
        stop = done | hopeless | (iteration == precision.iterations)
        size = torch.where(~finite & singular.cpu(), SINGULAR, size)
        left[rows] = torch.where(stop & ~done, size.clamp(min=1.0), 0.0)
        forwards = ~stop & (settled | (rate < 1))
        halve = ~stop & ~forwards & fresh[rows]
        back = ~stop & ~forwards & ~halve
        factors.stale[rows] |= (forwards & ~taking & (size * rate * rate > 1)) | back
        go = forwards.to(K.device).reshape(1, -1, *(1,) * (K.dim() - 2))
        half = halve.to(K.device).reshape(go.shape)
        start, step = before.index_select(1, index), correction.index_select(1, index)
        damping[rows] = torch.where(forwards, 1.0, torch.where(halve, damping[rows] / 2, damping[rows]))
        shrunk = damping[rows].to(K.device, K.dtype.to_real()).reshape(go.shape)
        stays = stop.to(K.device).reshape(go.shape)
        new = torch.where(stays, mine, torch.where(go, mine + delta, torch.where(half, start + shrunk * step, start)))
        before = before.index_copy(1, index, torch.where(go, mine, start))
        correction = correction.index_copy(1, index, torch.where(go, delta, step))
        K = K.index_copy(1, index, new)
        fresh[rows] = torch.where(forwards, taking, fresh[rows])
        last[rows] = torch.where(forwards, size, torch.where(back, math.inf, last[rows]))
        rows = rows[~stop]
    return K, left


def _of_rows(tolerance: Any, index: Tensor, shape: torch.Size) -> Any:
    own = isinstance(tolerance, Tensor) and tolerance.dim() == len(shape) and len(tolerance) == shape[0] > 1
    return tolerance.index_select(0, index) if own else tolerance

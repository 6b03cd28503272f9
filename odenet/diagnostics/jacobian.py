"""The Jacobian of F without forming it: Lipschitz constants by power iteration, eigenvalues by Arnoldi's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odenet.diagnostics.path import norms
from odenet.solvers.jacobian import load_forward_mode

Field = Callable[[Tensor], Tensor]
POWER_STEPS = 20


def jvp(f: Field, x: Tensor, v: Tensor) -> Tensor:
    """∂f/∂x v."""
    load_forward_mode()
    return torch.func.jvp(f, (x,), (v,))[1]


def lipschitz(f: Field, x: Tensor, steps: int = POWER_STEPS, seed: int = 0) -> Tensor:
    """‖∂f/∂x‖₂ of each sample, from below: v ← Jᵀ J v / ‖Jᵀ J v‖.

    Args:
        f: maps (batch, ...) to (batch, ...), sample by sample.
        x: (batch, ...) where.
        steps: of the power iteration.
        seed: of the first vector.

    Returns:
        (batch,).
    """
    v = _unit(_random(x, seed))
    pull = torch.func.vjp(f, x)[1]
    sigma = x.new_zeros(x.shape[0])
    for _ in range(steps):
        pushed = jvp(f, x, v)
        sigma = norms(pushed)
        v = _unit(pull(pushed)[0])
    return sigma


def ritz_values(f: Field, x: Tensor, size: int = 16, seed: int = 0) -> Tensor:
    """Eigenvalues of ∂f/∂x on a Krylov space of each sample: those at the rim of the spectrum first to converge.

    All eigenvalues, to rounding, if the state has at most `size` elements.

    Args:
        f: maps (batch, ...) to (batch, ...), sample by sample.
        x: (batch, ...) where.
        size: dimension of the space; that of the state if that is smaller.
        seed: of the first vector.

    Returns:
        (batch, size) complex.

    Reference:
        Arnoldi 1951; Saad 2011, Numerical Methods for Large Eigenvalue Problems.
    """
    batch, dim = x.shape[0], x[0].numel()
    size = min(size, dim)
    V = x.new_zeros(batch, size + 1, dim)
    H = x.new_zeros(batch, size + 1, size)
    V[:, 0] = _unit(_random(x, seed)).flatten(1)
    for j in range(size):
        w, H[:, : j + 1, j] = _orthogonal(jvp(f, x, V[:, j].reshape(x.shape)).flatten(1), V[:, : j + 1])
        H[:, j + 1, j] = w.norm(dim=1)
        scale = H[:, :, j].norm(dim=1)
        ended = H[:, j + 1, j] <= 1e3 * torch.finfo(x.dtype).eps * scale  # the space is invariant:
        H[:, j + 1, j] = torch.where(ended, 0, H[:, j + 1, j])
        if j + 1 < size and bool(ended.any()):  # another one is begun beside it
            other = _orthogonal(_unit(_random(x, seed + j + 1)).flatten(1), V[:, : j + 1])[0]
            w = torch.where(ended[:, None], other, w)
        V[:, j + 1] = _unit(w)
    return torch.linalg.eigvals(H[:, :size])


def _orthogonal(w: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """What of w, (batch, dim), is orthogonal to the unit vectors V, (batch, n, dim), and the rest in terms of these."""
    parts = w.new_zeros(V.shape[:2])
    for _ in range(2):  # twice is enough
        h = torch.einsum("bid,bd->bi", V, w)
        w, parts = w - torch.einsum("bi,bid->bd", h, V), parts + h
    return w, parts


def _random(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


def _unit(v: Tensor) -> Tensor:
    size = norms(v).clamp(min=torch.finfo(v.dtype).tiny)
    return v / size.reshape(-1, *(1,) * (v.dim() - 1))

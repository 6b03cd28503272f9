"""GMRES: a linear system solved with nothing but products; torch has no such solver."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
BASIS, RESTARTS = 80, 5


@torch.no_grad()
def gmres(
    product: Product, b: Tensor, tolerance: float, precondition: Product | None = None, basis: int = BASIS
) -> tuple[Tensor, bool]:
    """x with |b - M x| <= tolerance, by restarted GMRES with a preconditioner P ≈ M⁻¹ on the right.

    The basis is orthogonalised twice by classical Gram-Schmidt, so that one look at the device an iteration is enough.

    Args:
        product: v -> M v.
        b: right-hand side, a real vector.
        tolerance: of the residual, absolute, in the Euclidean norm.
        precondition: v -> P v, or None.
        basis: number of products after which it starts anew.

    Returns:
        x, and whether the tolerance was reached.

    Reference:
        Saad and Schultz 1986, GMRES: a generalized minimal residual algorithm.
    """
    x, r = torch.zeros_like(b), b
    inverse = precondition or (lambda v: v)
    for _ in range(RESTARTS):
        beta = float(torch.linalg.vector_norm(r))
        if not math.isfinite(beta) or beta <= tolerance:
            return x, beta <= tolerance
        Q, weights, reached = _cycle(lambda v: product(inverse(v)), r / beta, beta, tolerance, min(basis, b.numel()))
        y = torch.tensor(weights, dtype=b.dtype, device=b.device)
        x = x + inverse(Q[: len(weights)].T @ y)
        if reached:
            return x, True
        r = b - product(x)
    return x, float(torch.linalg.vector_norm(r)) <= tolerance


def _cycle(
    product: Product, start: Tensor, beta: float, tolerance: float, basis: int
) -> tuple[Tensor, np.ndarray, bool]:
    """One cycle of Arnoldi's process: the basis, the weights of the solution in it, and whether it is good enough."""
    Q = start[None]
    H, g = np.zeros((basis + 1, basis)), np.zeros(basis + 1)
    rotations: list[tuple[float, float]] = []
    g[0], size, reached = beta, 0, False
    for j in range(basis):
        w = product(Q[j])
        first = Q @ w
        w = w - first @ Q
        second = Q @ w
        w = w - second @ Q
        *column, length = torch.cat([first + second, torch.linalg.vector_norm(w)[None]]).tolist()
        if not all(map(math.isfinite, [*column, length])):
            break
        H[: j + 1, j], H[j + 1, j] = column, length
        for i, (c, s) in enumerate(rotations):
            H[i, j], H[i + 1, j] = c * H[i, j] + s * H[i + 1, j], c * H[i + 1, j] - s * H[i, j]
        pivot = math.hypot(H[j, j], H[j + 1, j])
        if pivot == 0:
            break
        c, s = H[j, j] / pivot, H[j + 1, j] / pivot
        rotations.append((c, s))
        H[j, j], H[j + 1, j], g[j], g[j + 1] = pivot, 0.0, c * g[j], -s * g[j]
        size = j + 1
        reached = abs(g[size]) <= tolerance
        if reached or length <= 1e-14 * beta:
            break
        Q = torch.cat([Q, w[None] / length])
    return Q, np.linalg.solve(H[:size, :size], g[:size]) if size else np.zeros(0), reached

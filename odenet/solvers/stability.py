"""What steps do to x' = z x, z = h λ: the stability function of a Runge-Kutta method, the roots of one with memory."""

from __future__ import annotations

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.implicit import ImplicitRungeKutta
from odenet.solvers.implicit_tableaus import ImplicitTableau
from odenet.solvers.momentum import ExactMomentum, Momentum
from odenet.solvers.stepper import Memory, Span, Stepper
from odenet.solvers.tableau import Tableau

C128 = torch.complex128
LONGEST_START = 8


def stability_roots(method: Stepper, z: Tensor) -> Tensor:
    """What a step of size 1 multiplies the solutions of its own recursion by, under x' = z x.

    A Runge-Kutta method has one root, its stability function R(z) = 1 + z bᵀ (I - z A)⁻¹ 1. A method that carries
    m - 1 tensors of memory maps (x, memory) linearly, and has the m eigenvalues of that matrix: one of them, the
    principal root, approximates e^z; the others are parasites, which begin at the size of the error and should not
    grow.

    Args:
        method: a native method, or the reversible form of one.
        z: complex, any shape.

    Returns:
        (*z.shape, m) complex, the principal root first: the one nearest to e^z.

    Raises:
        InputError: a method for pairs (q, p), whose step is no function of z alone.

    Reference:
        Hairer and Wanner 1996, Solving Ordinary Differential Equations II, sections IV.3 and V.1.
    """
    if method.partitioned:
        raise InputError(f"solver {method.name!r} walks pairs (q, p), and has no stability function of one number z")
    z = z.to(C128)
    if isinstance(method, ExplicitRungeKutta | ImplicitRungeKutta):
        return stability_function(method.tableau, z)[..., None]
    roots = torch.linalg.eigvals(_propagator(method, z))
    nearest = (roots - z.exp()[..., None]).abs().argsort(-1)
    return roots.gather(-1, nearest)


def stability_function(tableau: Tableau | ImplicitTableau, z: Tensor) -> Tensor:
    """R(z) = 1 + z bᵀ (I - z A)⁻¹ 1.

    Args:
        tableau: of the method.
        z: complex, any shape.
    """
    z = z.to(C128)
    if isinstance(tableau, ImplicitTableau) and tableau.coupled:
        A, b = torch.tensor(tableau.a, dtype=C128), torch.tensor(tableau.b, dtype=C128)
        ones = torch.ones(*z.shape, len(b), 1, dtype=C128)
        k = torch.linalg.solve(torch.eye(len(b), dtype=C128) - z[..., None, None] * A, ones)[..., 0]
        return 1 + z * (k @ b)
    stages: list[Tensor] = []  # k_i / z, one after the other
    for i, row in enumerate(tableau.a):
        value = torch.ones_like(z)
        for weight, k in zip(row, stages, strict=False):
            if weight != 0:
                value = value + weight * z * k
        stages.append(value / (1 - row[i] * z) if i < len(row) and row[i] != 0 else value)
    return 1 + z * sum(b * k for b, k in zip(tableau.b, stages, strict=True) if b != 0)


@torch.no_grad()
def _propagator(method: Stepper, z: Tensor) -> Tensor:
    """The matrix of a step of size 1 on (x, memory), (*z.shape, m, m), once the method has all of its memory."""
    if isinstance(method, ExactMomentum):
        method = Momentum(method.gamma)  # the same but for the rounding, which is not linear
    f, one = (lambda t, x: z * x), torch.ones_like(z)
    t, x, memory = 0.0, one, method.start(lambda t, x: z * x, 0.0, one)
    for _ in range(LONGEST_START):
        trial = method.step(f, Span(0, t, t + 1, 1.0), x, memory)
        grown = len(trial.memory.tensors) > len(memory.tensors)
        t, x, memory = t + 1, trial.x_next, trial.memory
        if not grown:
            break
    size, zero = 1 + len(memory.tensors), torch.zeros_like(z)
    columns = []
    for j in range(size):
        start, *kept = (one if i == j else zero for i in range(size))
        trial = method.step(f, Span(0, t, t + 1, 1.0), start, Memory(tuple(kept), memory.times))
        columns.append(torch.stack([trial.x_next, *trial.memory.tensors], -1))
    return torch.stack(columns, -1)

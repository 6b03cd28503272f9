"""A linear residual function, whose flow is known exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odenet.errors import InputError
from odenet.residual.layers import check_size
from odenet.residual.registry import residuals


@residuals.register("linear")
class Linear(nn.Module):
    """F(t, x) = A x + b.

    Args:
        dim: features of x.
        bias: whether there is a b.
        A: the matrix to start with, (dim, dim); drawn as in `nn.Linear` by default.

    Shape:
        t: () or (batch,); x: (batch, dim); result: (batch, dim).

    Raises:
        InputError: a value that cannot be used.
    """

    def __init__(self, dim: int, bias: bool = True, A: Tensor | None = None):
        super().__init__()
        check_size("dim", dim)
        self.dim = dim
        self.linear = nn.Linear(dim, dim, bias)
        if A is not None:
            if A.shape != (dim, dim):
                raise InputError(f"A must be of shape {(dim, dim)}, got {tuple(A.shape)}")
            self.linear.weight = nn.Parameter(A.detach().clone())
            self.linear.to(A.dtype)
            if bias:
                nn.init.zeros_(self.linear.bias)

    def reset_parameters(self) -> None:
        """Draw a new A and b."""
        self.linear.reset_parameters()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.linear(x)

    def flow(self, t: float | Tensor, x: Tensor) -> Tensor:
        """The exact solution after a time t: exp(t A) x + ∫₀ᵗ exp(s A) b ds.

        Both are blocks of one exponential, exp(t [[A, b], [0, 0]]).

        Args:
            t: length of depth, any sign; a number or 0-d tensor.
            x: (batch, dim) state at the start.

        Returns:
            (batch, dim) state at the end, differentiable in everything.

        Reference:
            Van Loan 1978, Computing Integrals Involving the Matrix Exponential.
        """
        A, b = self.linear.weight, self.linear.bias
        column = A.new_zeros(self.dim, 1) if b is None else b.unsqueeze(1)
        whole = torch.cat([torch.cat([A, column], 1), A.new_zeros(1, self.dim + 1)])
        exponential = torch.linalg.matrix_exp(t * whole)
        return x @ exponential[:-1, :-1].T + exponential[:-1, -1]

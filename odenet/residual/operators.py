"""A linear map and its transpose: a matrix for vectors, a convolution for images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from odenet.errors import InputError
from odenet.residual.layers import check_size


class Operator(nn.Module):
    """K: x ↦ K x, with its transpose y ↦ Kᵀ y.

    Args:
        inputs: features (channels) of x.
        outputs: features (channels) of K x.
        kernel: odd size of a zero-padded convolution for images (batch, inputs, H, W); None for a matrix, which takes
            vectors (batch, inputs).

    Raises:
        InputError: a size that cannot be used.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | None = None):
        super().__init__()
        if kernel is not None:
            check_size("kernel", kernel)
            if kernel % 2 == 0:
                raise InputError(f"kernel must be odd, so that the resolution is kept, got {kernel}")
        self.kernel = kernel
        size = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, as `nn.Linear` and `nn.Conv2d` do."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """K x."""
        if self.kernel is None:
            return functional.linear(x, self.weight)
        return functional.conv2d(x, self.weight, padding=self.kernel // 2)

    def transposed(self, y: Tensor) -> Tensor:
        """Kᵀ y."""
        if self.kernel is None:
            return functional.linear(y, self.weight.T)
        return functional.conv_transpose2d(y, self.weight, padding=self.kernel // 2)

    def norm_bound(self) -> Tensor:
        """An upper bound of ‖K‖₂: the largest singular value of a matrix; for a convolution, whose taps K_ij shift and
        map, Σ_ij ‖K_ij‖₂. 0-d, differentiable once.

        σ = uᵀ K v with the singular vectors held fixed, whose derivative u vᵀ is that of σ: the same floats with and
        without a graph.
        """
        taps = self.weight.flatten(2).permute(2, 0, 1) if self.kernel is not None else self.weight.unsqueeze(0)
        with torch.no_grad():
            u, _, vh = torch.linalg.svd(taps, full_matrices=False)
        return (u[:, :, :1].mT @ taps @ vh[:, :1, :].mT).sum()


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """One value a channel, (channels,), shaped to broadcast against x: (batch, channels, ...)."""
    return values.reshape(-1, *(1,) * (x.dim() - 2))


def check_even(name: str, value: int) -> None:
    """Raise `InputError` unless a state of `value` features has two halves."""
    check_size(name, value)
    if value % 2:
        raise InputError(f"{name} must be even, so that the state is a pair (q, p), got {value}")

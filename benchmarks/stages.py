"""Four stages of convolutions as in a residual network, each an ODE block, with halved resolution between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import odenet
from benchmarks.workloads import Call, ConvTwice, Row

WIDTHS, NUMERICS = (16, 32, 64, 128), {"rtol": 1e-3, "atol": 1e-3}
Solve = Callable[[nn.Module, Tensor], Tensor]


class Stages(nn.Module):
    """x (batch, 16, 32, 32) -> (batch, 128, 4, 4).

    Args:
        solve: the solution at 1 of x' = F(t, x).
    """

    def __init__(self, fields: nn.ModuleList, downs: nn.ModuleList, solve: Solve):
        super().__init__()
        self.fields, self.downs, self.solve = fields, downs, solve

    def forward(self, x: Tensor) -> Tensor:
        for number, F in enumerate(self.fields):
            x = self.solve(F, x)
            x = self.downs[number](x) if number < len(self.downs) else x
        return x


def rows() -> list[Row]:
    """The stages, forward and gradient."""
    return [
        Row("4 conv stages, forward", partial(contenders, False)),
        Row("4 conv stages, gradient, all activations", partial(contenders, True)),
    ]


def contenders(gradient: bool) -> dict[str, Call]:
    """The columns of a row."""
    from torchdiffeq import odeint

    torch.manual_seed(0)
    fields = nn.ModuleList(ConvTwice(width) for width in WIDTHS)
    downs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(WIDTHS))
    image, ends = torch.randn(16, WIDTHS[0], 32, 32), torch.tensor([0.0, 1.0])
    blocks = {F: odenet.ODEBlock(F, gradient="autograd", compile=False, **NUMERICS) for F in fields}
    networks = {
        "odenet, eager": lambda F, x: blocks[F](x),
        "torchdiffeq": lambda F, x: odeint(F, x, ends, method="dopri5", **NUMERICS)[-1],
        "floor": lambda F, x: _evaluations(F, x, blocks[F].stats.nfe),
    }
    return {name: partial(_run, Stages(fields, downs, solve), image, gradient) for name, solve in networks.items()}


def _run(network: nn.Module, image: Tensor, gradient: bool) -> Any:
    if not gradient:
        with torch.no_grad():
            return network(image)
    network.zero_grad()
    x = image.clone().requires_grad_()
    network(x).square().sum().backward()
    return x.grad


def _evaluations(F: nn.Module, x: Tensor, count: int) -> Tensor:
    """F(0, x) again and again, of the sum of which all take part in the gradient."""
    t, total = torch.zeros(()), x
    for _ in range(count):
        k = F(t, x)
        total = total + k if torch.is_grad_enabled() else k
    return total

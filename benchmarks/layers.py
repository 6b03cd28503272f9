"""A residual network of ten layers with weights of their own, each a small perceptron."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import odenet
from benchmarks.workloads import Call, Row

LAYERS, WIDTH, BATCH = 10, 64, 32


class Layer(nn.Module):
    """Linear(64, 64), tanh, Linear(64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


def rows() -> list[Row]:
    """The network, forward and gradient."""
    name = f"{LAYERS} untied layers, batch {BATCH}"
    return [Row(f"{name}, forward", partial(contenders, False)), Row(f"{name}, gradient", partial(contenders, True))]


def contenders(gradient: bool) -> dict[str, Call]:
    """The columns of a row; the floor is the layers alone, the plain loop adds them up as a network does."""
    torch.manual_seed(0)
    eager = odenet.ResNet(Layer(), LAYERS, weights="untied", compile=False)
    compiled = odenet.ResNet(eager.weights, LAYERS, compile=True)
    layers, t = [eager.weights.piece(i) for i in range(LAYERS)], torch.zeros(())
    x = torch.randn(BATCH, WIDTH)
    networks: dict[str, Callable[[Tensor], Tensor]] = {
        "odenet, eager": eager,
        "odenet, compiled": compiled,
        "floor": lambda x: _alone(layers, t, x),
        "plain loop": lambda x: _added(layers, t, x),
    }
    return {name: partial(_run, eager, network, x, gradient) for name, network in networks.items()}


def _run(block: nn.Module, network: Callable[[Tensor], Tensor], x: Tensor, gradient: bool) -> Any:
    if not gradient:
        with torch.no_grad():
            return network(x)
    block.zero_grad()
    x = x.clone().requires_grad_()
    network(x).square().sum().backward()
    return x.grad


def _alone(layers: list[Any], t: Tensor, x: Tensor) -> Tensor:
    """The layers one after the other, of which nothing is added up."""
    for layer in layers:
        x = layer(t, x)
    return x


def _added(layers: list[Any], t: Tensor, x: Tensor) -> Tensor:
    """x = x + h F_n(t, x)."""
    h = 1 / len(layers)
    for layer in layers:
        x = x + h * layer(t, x)
    return x

"""What `benchmarks/speed.py` times: the functions F, and the same solve asked of odenet and of its peers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import odenet

Call = Callable[[], Any]


class Tanh(nn.Module):
    """Linear(2, 64), tanh, Linear(64, 64), tanh, Linear(64, 2)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)]
        self.net = nn.Sequential(*layers)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


class ConvTwice(nn.Module):
    """GroupNorm, relu, 3x3 convolution with time as a channel, twice; then GroupNorm.

    Args:
        channels: of the state.
    """

    def __init__(self, channels: int = 64):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(min(32, channels), channels) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.relu(norm(x))
            x = conv(torch.cat([t.expand(x.shape[0], 1, *x.shape[2:]), x], 1))
        return self.norms[2](x)


@dataclass
class Workload:
    """One row of the table.

    Attributes:
        name: as it reads there.
        F: the function.
        x: initial state.
        end: of the interval that begins at 0.
        numerics: arguments of `odenet.solve`.
        gradient: None for the forward pass alone, else the gradient method.
        compile: whether the compiled columns are filled.
    """

    name: str
    F: nn.Module
    x: Tensor
    end: float
    numerics: dict[str, Any]
    gradient: str | None = None
    compile: bool = True

    @property
    def fixed(self) -> bool:
        """Whether the steps are given."""
        return "steps" in self.numerics

    def run(self, solve: Callable[[Tensor], Tensor]) -> Any:
        """One timed call of a solve: without a graph, or with the gradient of the sum of squares."""
        if self.gradient is None:
            with torch.no_grad():
                return solve(self.x)
        self.F.zero_grad()
        x = self.x.clone().requires_grad_()
        solve(x).square().sum().backward()
        return x.grad

    def block(self, compile: bool) -> odenet.ODEBlock:
        """The solve as a block."""
        return odenet.ODEBlock(
            self.F, t1=self.end, gradient=self.gradient or "autograd", compile=compile, **self.numerics
        )

    def counts(self) -> tuple[int, float]:
        """(evaluations of F, VJPs) of one call of the eager block."""
        block = self.block(False)
        self.run(block)
        return block.stats.nfe, block.stats.vjps or (block.stats.nfe if self.gradient else 0)


@dataclass
class Row:
    """A row of the table that is another program than a `Workload`.

    Attributes:
        name: as it reads there.
        calls: () -> its columns.
    """

    name: str
    calls: Callable[[], dict[str, Call]]


def workloads(quick: bool) -> list[Workload | Row]:
    """The rows."""
    from benchmarks import layers, per_sample, stages

    torch.manual_seed(0)
    F, C = Tanh(), ConvTwice()
    small, large, image = torch.randn(32, 2), torch.randn(1024, 2), torch.randn(128, 64, 6, 6)
    adaptive = {"rtol": 1e-5, "atol": 1e-5}
    rows: list[Workload | Row] = [
        Workload("MLP, batch 32, forward", F, small, 10.0, adaptive),
        Workload("MLP, batch 32, gradient", F, small, 10.0, adaptive, "autograd"),
        Workload("MLP, batch 1024, forward", F, large, 10.0, adaptive),
        Workload("MLP, batch 1024, gradient", F, large, 10.0, adaptive, "autograd"),
        Workload("100 Euler steps, batch 32, forward", F, small, 10.0, {"solver": "euler", "steps": 100}),
    ]
    rows += layers.rows()
    rows += per_sample.rows()
    if not quick:
        conv = {"rtol": 1e-3, "atol": 1e-3}
        rows += [
            Workload("conv, forward", C, image, 1.0, conv, None, False),
            Workload("conv, gradient, all activations", C, image, 1.0, conv, "autograd", False),
            Workload("conv, gradient, one step's activations", C, image, 1.0, conv, "checkpoint", False),
        ]
        rows += stages.rows()
    return rows


def floor(work: Workload, F: Callable[..., Tensor]) -> Call:
    """The same evaluations of F, and the same VJPs, and nothing else; with "checkpoint" each evaluation twice."""
    nfe, _ = work.counts()
    t = torch.zeros(())

    def forward() -> None:
        with torch.no_grad():
            for _ in range(nfe):
                F(t, work.x)

    def gradient() -> None:
        if work.gradient == "checkpoint":
            forward()
        x = work.x.clone().requires_grad_()
        parameters = list(work.F.parameters())
        for _ in range(nfe):
            k = F(t, x)
            torch.autograd.grad(k, [x, *parameters], k.detach(), allow_unused=True)

    return gradient if work.gradient else forward


def plain_loop(work: Workload) -> Call:
    """x = x + h F(t, x) in Python."""

    def loop() -> Tensor:
        with torch.no_grad():
            x, t, h = work.x, torch.zeros(()), work.end / work.numerics["steps"]
            for n in range(work.numerics["steps"]):
                x = x + h * work.F(t + n * h, x)
            return x

    return loop


def by_torchdiffeq(work: Workload) -> Call:
    """torchdiffeq.odeint; the adjoint where one step's activations are to be held."""
    from torchdiffeq import odeint, odeint_adjoint

    ts = torch.tensor([0.0, work.end])
    options: dict[str, Any] = {"rtol": work.numerics.get("rtol", 1e-7), "atol": work.numerics.get("atol", 1e-9)}
    if work.fixed:
        options = {"method": work.numerics["solver"], "options": {"step_size": work.end / work.numerics["steps"]}}
    solver: Any = odeint_adjoint if work.gradient == "checkpoint" else odeint
    return partial(work.run, lambda x: solver(work.F, x, ts, **options)[-1])


def by_torchode(work: Workload) -> Call | None:
    """torchode's dopri5, each sample with its own steps, as it always has them."""
    if work.fixed or work.x.dim() != 2 or find_spec("torchode") is None:
        return None
    import torchode

    term = torchode.ODETerm(work.F)  # type: ignore[arg-type]
    controller = torchode.IntegralController(atol=work.numerics["atol"], rtol=work.numerics["rtol"], term=term)
    adjoint = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)  # type: ignore[arg-type]
    times = torch.tensor([0.0, work.end]).expand(work.x.shape[0], 2)

    def solve(x: Tensor) -> Tensor:
        problem = torchode.InitialValueProblem(y0=x, t_start=times[:, 0], t_end=times[:, 1], t_eval=times)  # type: ignore[arg-type]
        return adjoint.solve(problem).ys[:, -1]

    return partial(work.run, solve)


def by_diffrax(work: Workload) -> Call | None:
    """diffrax under jit, with its default adjoint (recursive checkpoints)."""
    if not isinstance(work.F, Tanh) or find_spec("diffrax") is None:
        return None
    import diffrax
    import jax
    import jax.numpy as jnp

    weights = [(jnp.asarray(m.weight.detach().numpy().T), jnp.asarray(m.bias.detach().numpy()))
               for m in work.F.net if isinstance(m, nn.Linear)]  # fmt: skip

    def F(t: Any, x: Any, weights: Any) -> Any:
        *hidden, (W, b) = weights
        for V, c in hidden:
            x = jnp.tanh(x @ V + c)
        return x @ W + b

    def solve(x: Any, weights: Any) -> Any:
        if work.fixed:
            solver, control, h = diffrax.Euler(), diffrax.ConstantStepSize(), work.end / work.numerics["steps"]
        else:
            solver, h = diffrax.Dopri5(), None
            control = diffrax.PIDController(rtol=work.numerics["rtol"], atol=work.numerics["atol"])
        return diffrax.diffeqsolve(
            diffrax.ODETerm(F), solver, 0.0, work.end, h, x, args=weights, stepsize_controller=control, max_steps=4096
        ).ys[-1]  # type: ignore[index]

    x = jnp.asarray(work.x.numpy())
    function = jax.jit(jax.grad(lambda x, w: (solve(x, w) ** 2).sum(), (0, 1)) if work.gradient else solve)
    return lambda: jax.block_until_ready(function(x, weights))


def contenders(work: Workload | Row) -> dict[str, Call]:
    """The columns of a row."""
    if isinstance(work, Row):
        return work.calls()
    eager = work.block(False)
    calls: dict[str, Call | None] = {"odenet, eager": partial(work.run, eager)}
    if work.compile:
        compiled = work.block(True)
        calls["odenet, compiled"] = partial(work.run, compiled)
    calls |= {
        "torchdiffeq": by_torchdiffeq(work),
        "torchode": by_torchode(work),
        "diffrax": by_diffrax(work),
        "floor": floor(work, work.F),
    }
    if work.compile and work.gradient is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls["floor, compiled"] = floor(work, torch.compile(work.F, dynamic=True))
    if work.fixed:
        calls["plain loop"] = plain_loop(work)
    return {name: call for name, call in calls.items() if call is not None}

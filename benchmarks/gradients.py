"""Memory, time and error of the gradient methods, beside torchdiffeq's; and networks of a thousand layers.

    python -m benchmarks.gradients                  # on the CPU
    python -m benchmarks.gradients --device cuda    # memory as the allocator says

writes docs/gradients.json (every measurement) and docs/gradients.md (the tables); on a GPU docs/gradients_gpu.*.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

import odenet
from benchmarks.gradients_jax import diffrax_gradients
from benchmarks.workloads import ConvTwice, Tanh
from odenet.diagnostics import audit_gradients
from odenet.diagnostics.gradient_verdict import size
from odenet.training import SavedTensorMeter

DOCS = Path(__file__).resolve().parents[1] / "docs"
Row = dict[str, Any]


PROBLEMS = {
    "MLP, batch 32, t in [0, 10], tol 1e-5": (Tanh, (32, 2), 10.0, 1e-5),
    "conv, batch 8, 64 channels, 6x6, t in [0, 1], tol 1e-3": (ConvTwice, (8, 64, 6, 6), 1.0, 1e-3),
    "conv, batch 128, 64 channels, 6x6, t in [0, 1], tol 1e-3": (ConvTwice, (128, 64, 6, 6), 1.0, 1e-3),
}
DIFFRAX_ELEMENTS = 100_000  # above, a gradient takes XLA minutes on two cores


def torchdiffeq_ways(F: nn.Module, t1: float, tolerance: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """torchdiffeq's three gradients of dopri5."""
    common = {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}
    seminorm = {"adjoint_options": {"norm": "seminorm"}}

    def times(x: Tensor) -> Tensor:
        return torch.tensor([0.0, t1], dtype=x.dtype, device=x.device)

    return {
        "torchdiffeq autograd": lambda x: odeint(F, x, times(x), **common)[-1],
        "torchdiffeq adjoint": lambda x: odeint_adjoint(F, x, times(x), **common)[-1],
        "torchdiffeq seminorm": lambda x: odeint_adjoint(F, x, times(x), **common, **seminorm)[-1],
    }


def odenet_blocks(F: nn.Module, t1: float, tolerance: float) -> dict[str, odenet.ODEBlock]:
    """Our gradients of dopri5, and the reversible methods that have a solver of their own."""
    names = ("autograd", "checkpoint", "stagewise", "reversible", "adjoint")
    ways: dict[str, tuple[str, str, dict[str, Any]]] = {f"odenet {name}": ("dopri5", name, {}) for name in names}
    ways |= {
        "odenet checkpoint, checkpoints=4": ("dopri5", "checkpoint", {"checkpoints": 4}),
        "odenet mali (alf)": ("alf", "mali", {}),
        "odenet reversible_heun": ("reversible_heun", "reversible_heun", {}),
    }
    return {
        title: odenet.ODEBlock(F, solver, tolerance, tolerance, t1=t1, gradient=name, gradient_options=options)
        for title, (solver, name, options) in ways.items()
    }


def loss(x: Tensor) -> Tensor:
    """Sum of squares: of order one in every sample, so that an absolute tolerance means what it says for cotangents."""
    return x.square().sum()


def gradient(F: nn.Module, solve: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the sum of squares of the answer, flat: with respect to x, then the parameters."""
    x = x.clone().requires_grad_()
    found = torch.autograd.grad(loss(solve(x)), [x, *F.parameters()])
    return torch.cat([g.flatten() for g in found]).double()


def peak_bytes(work: Callable[[], Any], device: torch.device, exclude: Iterable[Tensor]) -> float:
    """Peak of what is held for a backward pass: saved tensors; on CUDA what the allocator had to give."""
    if device.type != "cuda":
        with SavedTensorMeter(exclude=exclude) as meter:
            work()
        return float(meter.peak)
    work()  # in which libraries take their own memory
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return float(torch.cuda.max_memory_allocated(device) - before)


def clock(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def compared(
    make: type[nn.Module],
    shape: tuple[int, ...],
    t1: float,
    tolerance: float,
    rounds: int,
    diffrax: bool,
    device: torch.device,
) -> list[Row]:
    """Every library's gradients of one problem: errors, memory, and times measured in turn, round by round.

    The error of ours is against backprop in float64 through the method's own steps; of torchdiffeq's against its own
    backprop in float64; of diffrax's against its own direct backprop.
    """
    torch.manual_seed(0)
    F, x = make().to(device), torch.randn(shape).to(device)
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    steps = 1
    for name, block in odenet_blocks(F, t1, tolerance).items():
        (found,) = audit_gradients(block, x, loss, [block.scheme.gradient], repeats=1).methods
        rows[name] = {"bytes": found.bytes, "error": found.error}
        calls[name] = partial(gradient, F, block, x)
        if name == "odenet autograd":
            calls[name]()
            steps = block.stats.accepted
    truth = gradient(F.double(), torchdiffeq_ways(F, t1, tolerance)["torchdiffeq autograd"], x.double())
    F.float()
    for name, solve in torchdiffeq_ways(F, t1, tolerance).items():
        calls[name] = partial(gradient, F, solve, x)
        got, held = calls[name](), peak_bytes(calls[name], device, F.parameters())
        rows[name] = {"bytes": held, "error": float((got - truth).norm() / truth.norm())}
    room = 4 ** math.ceil(math.log(2 * steps, 4))
    wanted = diffrax and device.type == "cpu" and x.numel() < DIFFRAX_ELEMENTS
    theirs = diffrax_gradients(F, t1, tolerance, room) if wanted else {}
    exact = None
    for name, solve in theirs.items():
        got = solve(x)
        exact = got if exact is None else exact
        rows[name] = {"bytes": None, "error": float((got - exact).norm() / exact.norm())}
        calls[name] = partial(solve, x)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock(device)
            call()
            seconds[name].append(clock(device) - start)
    return [{"method": name, **row, "seconds": median(seconds[name])} for name, row in rows.items()]


def layers(depths: tuple[int, ...], repeats: int, device: torch.device) -> list[Row]:
    """Peak memory and seconds of a training step of ResNets, tied and untied, over their depth."""
    rows = []
    x, target = torch.randn(64, 64).to(device), torch.randn(64, 64).to(device)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("autograd", {}),
        ("checkpoint", {}),
        ("checkpoint", {"checkpoints": 9}),
        ("reversible", {}),
        ("momentum", {"exact": True}),
    ]
    for weights in ("tied", "untied"):
        for gradient, options in ways:
            for depth in depths:
                torch.manual_seed(0)
                F = odenet.residual.MLP(64, width=64)
                net = odenet.ResNet(F, depth, weights=weights, gradient=gradient, gradient_options=options).to(device)
                optimizer = torch.optim.SGD(net.parameters(), 1e-2)
                losses, seconds = [], []

                def step(net: nn.Module = net, optimizer: torch.optim.Optimizer = optimizer) -> None:
                    optimizer.zero_grad()
                    loss = (net(x) - target).square().mean()
                    loss.backward()
                    losses.append(float(loss))  # noqa: B023
                    optimizer.step()

                peak = peak_bytes(step, device, net.parameters())
                for _ in range(repeats):
                    start = clock(device)
                    step()
                    seconds.append(clock(device) - start)
                name = " ".join([gradient, *(f"{k}={v}" for k, v in options.items())])
                row = {"weights": weights, "method": name, "layers": depth, "bytes": peak, "seconds": min(seconds)}
                rows.append({**row, "losses": losses})
                print(row, flush=True)
    return rows


def page(found: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# Gradient methods, measured", ""]
    lines += [f"Made by `{found['command']}` ({found['where']}).", ""]
    lines += ["Times are medians of gradients taken in turn, and belong to one run on one machine: compare ratios."]
    held = "what the allocator had to give" if found["cuda"] else "the tensors saved for the backward pass"
    lines += [f"Memory is the peak of {held} (unknown for diffrax, compiled by XLA)."]
    lines += ["The error is relative, against backprop through the same steps in float64; of torchdiffeq's methods"]
    lines += ["against its own backprop in float64, of diffrax's against its own direct backprop.", ""]
    for title, rows in found["problems"].items():
        fastest = next(r["seconds"] for r in rows if r["method"] == "odenet autograd")
        lines += [f"## {title}", "", "| method | memory | ms | against `autograd` | error |", "| --- " * 5 + "|"]
        for r in rows:
            ratio = r["seconds"] / fastest
            memory = "" if r["bytes"] is None else size(r["bytes"])
            numbers = f"{memory} | {1e3 * r['seconds']:.0f} | {ratio:.2f} | {r['error']:.1e}"
            lines.append(f"| {r['method']} | {numbers} |")
        lines.append("")
    lines += ["## A thousand layers", ""]
    lines += ["One training step of a ResNet, MLP(64, width=64), batch 64: peak memory (seconds).", ""]
    depths = sorted({r["layers"] for r in found["layers"]})
    headings = ["weights", "method", *(f"{d:,} layers" for d in depths)]
    lines += [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for weights, method in dict.fromkeys((r["weights"], r["method"]) for r in found["layers"]):
        rows = {r["layers"]: r for r in found["layers"] if (r["weights"], r["method"]) == (weights, method)}
        cells = [f"{size(rows[d]['bytes'])} ({rows[d]['seconds']:.2g})" for d in depths]
        lines.append(f"| {weights} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--diffrax", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    libraries = [name for name in ("torch", "torchdiffeq", "diffrax") if find_spec(name)]
    if not options.diffrax:
        libraries = [name for name in libraries if name != "diffrax"]
    device, cuda = options.device, options.device.type == "cuda"
    on = torch.cuda.get_device_name(device) if cuda else f"CPU, {options.threads} thread(s)"
    where = ", ".join(f"{name} {version(name)}" for name in libraries) + f"; {on}"
    command = " ".join(["python -m benchmarks.gradients", *sys.argv[1:]])
    found: dict[str, Any] = {"where": where, "command": command, "cuda": cuda, "problems": {}}
    for title, problem in PROBLEMS.items():
        rows = compared(*problem, options.repeats, options.diffrax, device)
        found["problems"][title] = rows
        for row in rows:
            print(title, row, flush=True)
    found["layers"] = layers((10, 100, 1000), max(2, options.repeats // 2), device)
    name = "gradients_gpu" if cuda else "gradients"
    DOCS.joinpath(f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    DOCS.joinpath(f"{name}.md").write_text(page(found))


if __name__ == "__main__":
    main()

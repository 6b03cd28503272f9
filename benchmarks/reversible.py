"""What steps that can be undone make of decaying modes, and of rounding: docs/reversible.md and its figure.

    python -m benchmarks.reversible

x' = -2 (x - cos t) from x = 1 over [0, 20], 400 steps, h λ = -0.1, in float64: the error of each method along the way
against the closed form, and after it the relative error of x0 when the steps are undone, in float64 and in float32.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odenet
from odenet import plotting
from odenet.diagnostics import Curves, Line, stability_roots
from odenet.gradients import gradients
from odenet.gradients.reversal import ReversibleForm
from odenet.solvers import Scheme, solvers
from odenet.solvers.stepper import Stepper

DECAY, END, STEPS = 2.0, 20.0, 400
DOCS = Path(__file__).parent.parent / "docs"
METHODS: dict[str, dict[str, Any]] = {
    "rk4": {"solver": "rk4", "gradient": "checkpoint"},
    "alf": {"solver": "alf", "gradient": "mali"},
    "reversible_heun": {"solver": "reversible_heun", "gradient": "reversible_heun"},
    "reversible, 0.999": {"solver": "rk4", "gradient": "reversible"},
    "reversible, 0.95": {"solver": "rk4", "gradient": "reversible", "coupling": 0.95},
    "reversible, 0.9": {"solver": "rk4", "gradient": "reversible", "coupling": 0.9},
    "momentum": {"solver": "euler", "gradient": "momentum"},
}


def F(t: Tensor, x: Tensor) -> Tensor:
    return -DECAY * (x - torch.cos(t))


def exact(t: Tensor) -> Tensor:
    """x' = -2 x + 2 cos t, x(0) = 1: (4 cos t + 2 sin t + e^(-2t)) / 5."""
    return (4 * torch.cos(t) + 2 * torch.sin(t) + torch.exp(-2 * t)) / 5


def walked(method: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, float]:
    """|error| at the ends of the steps, and the relative error of x0 when they are undone."""
    how = {key: value for key, value in method.items() if key != "coupling"}
    options = {key: value for key, value in method.items() if key == "coupling"}
    ts = torch.linspace(0, END, STEPS + 1, dtype=torch.float64)
    x0 = torch.ones(1, dtype=dtype, requires_grad=True)
    solution = odenet.solve(F, x0, (0, END), ts=ts.tolist(), steps=STEPS, gradient_options=options, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the drift, which is what is measured
        solution.last.sum().backward()
    return (solution.ys[:, 0].detach().double() - exact(ts)).abs(), solution.stats.drift


def stepper_of(method: dict[str, Any]) -> Stepper:
    """What takes the steps of a method."""
    gradient = gradients[method["gradient"]]
    if not isinstance(gradient, ReversibleForm):
        return solvers[method["solver"]]
    options = {key: value for key, value in method.items() if key == "coupling"}
    return gradient.form(
        Scheme(solver=method["solver"], steps=STEPS, gradient=method["gradient"], gradient_options=options)
    )


def main() -> None:
    """Measure, print the table, and draw."""
    h, ts, lines = END / STEPS, torch.linspace(0, END, STEPS + 1).tolist(), []
    print("| steps | other roots at hλ = -0.1 | error at t = 1, 10, 20 | x0 undone, float64 | float32 |")
    print("| --- | --- | --- | ---: | ---: |")
    for name, method in METHODS.items():
        (error, drift), single = walked(method, torch.float64), walked(method, torch.float32)[1]
        roots = stability_roots(stepper_of(method), torch.tensor(-h * DECAY)).abs()[1:].tolist()
        places = [round(t / h) for t in (1, 10, 20)]
        undone = ["stored" if method["gradient"] == "checkpoint" else f"{number:.1e}" for number in (drift, single)]
        print(
            f"| {name} | {', '.join(f'{root:.3g}' for root in roots if root > 1e-6) or 'none'} | "
            f"{', '.join(f'{float(error[place]):.1e}' for place in places)} | {undone[0]} | {undone[1]} |"
        )
        kept = error[1:].clamp(min=1e-16).tolist()
        lines.append(Line(name, ts[1:], kept, "dashed" if name == "rk4" else "line"))
    lines = [*lines[1:], lines[0]]  # rk4 on top of what is as good
    figure = plotting.curves({"": Curves("t", "error", lines, logy=True)})
    plotting.save(figure, DOCS / "figures" / "reversible")


if __name__ == "__main__":
    main()

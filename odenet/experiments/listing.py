"""`odenet list`: what the registries hold, and what the config groups offer."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from odenet.data import datasets
from odenet.depth import depth_weights
from odenet.diagnostics import diagnostics
from odenet.experiments.config import config_folder
from odenet.gradients import gradients
from odenet.regularisers import regularisers
from odenet.residual import residuals
from odenet.solvers import backends

GROUPS = (
    "model",
    "network",
    "data",
    "regulariser",
    "optimizer",
    "schedule",
    "continuation",
    "monitor",
    "trainer",
    "experiment",
)


def list_everything(console: Console) -> None:
    """Print solvers, gradients, residual functions, depth weights, diagnostics, data sets and config groups."""
    for name, backend in backends.items():
        table = _table(f"solvers, backend={name}", "solver", "order", "steps", "reference")
        for solver, method in backend.methods().items():
            steps = " or ".join(w for w, can in (("fixed", method.fixed), ("adaptive", method.adaptive)) if can)
            table.add_row(solver, "" if method.order is None else str(method.order), steps, method.reference)
        console.print(table)
    table = _table("gradients", "gradient", "exact", "backends", "memory", "reference")
    for name, method in gradients.items():
        exact = "yes" if method.exact else "no"
        table.add_row(name, exact, ", ".join(method.backends), method.memory, method.reference)
    console.print(table)
    table = _table("regularisers", "regulariser", "what")
    for name, regulariser in regularisers.items():
        table.add_row(name, _first_line(regulariser))
    console.print(table)
    table = _table("residual functions F(t, x)", "residual", "what")
    for name, residual in residuals.items():
        table.add_row(name, _first_line(residual))
    console.print(table)
    table = _table("weights over depth", "weights", "what")
    for name, weights in depth_weights.items():
        table.add_row(name, _first_line(weights))
    console.print(table)
    table = _table("diagnostics (odenet diagnose run=PATH)", "diagnostic", "formula", "reference")
    for name, entry in diagnostics.items():
        table.add_row(name, entry.formula, entry.reference)
    console.print(table)
    table = _table("data sets", "data", "what")
    for name, dataset in datasets.items():
        table.add_row(name, _first_line(dataset))
    console.print(table)
    table = _table("config groups (GROUP=NAME)", "group", "names")
    for group in GROUPS:
        table.add_row(group, ", ".join(sorted(p.stem for p in (config_folder() / group).glob("*.yaml"))))
    console.print(table)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in headings[:1])
    return table


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]

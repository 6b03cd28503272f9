"""`odenet audit`: every gradient method on a network of a run, or on one that is made for it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from odenet.artifacts import make_folder, write_json, write_text
from odenet.blocks import blocks_of
from odenet.data import DataSet
from odenet.diagnostics.gradient_audit import Audit, audit_gradients
from odenet.diagnostics.gradient_table import HEADINGS, cells
from odenet.errors import InputError
from odenet.experiments.build import build_data, build_model
from odenet.experiments.contender import label_of
from odenet.experiments.evaluate import load_network, networks_of
from odenet.plotting import save
from odenet.plotting.gradient_audit import gradient_audit
from odenet.training import Objective, objective_of


def audit(config: DictConfig, console: Console) -> dict[str, Audit]:
    """Audit the gradients of each network; writes for each <name>.csv, <name>.json and the figure.

    Args:
        config: composed config of `odenet audit`.
        console: where to write.

    Returns:
        The audits by the names of the networks.

    Raises:
        RunError: no run there, or its checkpoint is missing or corrupt.
        InputError: no network with blocks in it.
    """
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    folder, networks = _networks(config)
    found = {}
    for name, label, model, data in networks:
        if not blocks_of(model):
            continue
        x, y = data.prepare(data.train_x[: config.batch]), data.train_y[: config.batch]
        model.train()

        objective = objective_of(data)

        def loss(outputs: torch.Tensor, y: torch.Tensor = y, objective: Objective = objective) -> torch.Tensor:
            return objective.loss(outputs, y)

        result = audit_gradients(model, x, loss, config.methods, repeats=config.repeats)
        found[name] = result
        console.print(_table(result, f"{label}: {blocks_of(model)[0].scheme}, {len(x)} samples"))
        for refused in result.refused:
            console.print(f"[dim]{refused.gradient}: {refused.note}[/dim]", highlight=False)
        console.print(f"{result.verdict}\n{result.recommendation}\n", highlight=False)
        _write(result, make_folder(folder) / name, label)
    if not found:
        raise InputError("there is no network with a ResNet or an ODEBlock in it, whose gradients could be audited")
    console.print(f"written to {folder}", highlight=False)
    return found


def _networks(config: DictConfig) -> tuple[Path, list[tuple[str, str, nn.Module, DataSet]]]:
    """Where to write, and (name, label, network, data) of what is to be audited."""
    if config.run is None:
        data = build_data(config)
        name = config.model.name
        folder = config.folder or f"{config.root}/audit/{data.name}-{name}-seed{config.seed}"
        return Path(folder), [(name, config.model.label, build_model(config, data), data)]
    run = Path(config.run)
    networks = []
    for name, one, where in networks_of(run, config.contender):
        data = build_data(one)
        networks.append((name, label_of(name, one), load_network(one, data, where), data))
    return Path(config.folder or run / "audit"), networks


def _table(result: Audit, title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "gradient" else "right", no_wrap=True)
    for m in result.methods:
        table.add_row(*cells(m), style="bold" if m.gradient == result.used else None)
    return table


def _write(result: Audit, path: Path, label: str) -> None:
    rows: list[dict[str, Any]] = result.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path.with_suffix(".csv"), text.getvalue())
    refused = {m.gradient: m.note for m in result.refused}
    told = {"used": result.used, "verdict": result.verdict, "recommendation": result.recommendation}
    write_json(path.with_suffix(".json"), {**told, "methods": rows, "refused": refused})
    save(gradient_audit(rows, f"Gradient methods on {label}"), path)

"""`odenet diagnose`: is the trained network of a run an ODE?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from odenet.artifacts import make_folder, write_json, write_text
from odenet.blocks import blocks_of
from odenet.diagnostics import Finding, diagnostics, survey, verdict_of
from odenet.experiments.build import build_data
from odenet.experiments.contender import label_of
from odenet.experiments.diagnosis_figures import draw
from odenet.experiments.diagnosis_page import VERDICTS, Diagnosis, csv, html, markdown
from odenet.experiments.evaluate import load_network, networks_of
from odenet.experiments.folder import read_config


def diagnose(config: DictConfig, console: Console) -> list[Diagnosis]:
    """Diagnose the networks of a run.

    Args:
        config: composed config of `odenet diagnose`.
        console: where to write.

    Returns:
        A diagnosis of each network that has blocks. Each is written to `diagnosis/` in its folder: report.html,
        report.md, diagnosis.json, diagnosis.csv and figures.

    Raises:
        RunError: no run there, or its checkpoint is missing or corrupt.
        UnknownNameError: no such diagnostic.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    for name in config.diagnostics or ():
        diagnostics[name]
    folder, found = Path(config.run), []
    seed = read_config(folder)["seed"]
    for name, one, where in networks_of(folder, config.contender):
        data = build_data(one)
        model = load_network(one, data, where)
        if not blocks_of(model):
            console.print(f"{one.model.label}: no depth, nothing to diagnose", highlight=False)
            continue
        x, y = data.prepare(data.test_x[: config.test_samples]), data.test_y[: config.test_samples]
        chosen = list(config.diagnostics) if config.diagnostics is not None else None
        findings = survey(model, x, y, chosen, config.samples)
        facts = f"{data.description}; seed {seed}; trained with {blocks_of(model)[0].scheme}"
        diagnosis = write_diagnosis(where / "diagnosis", name, label_of(name, one), facts, model, findings)
        console.print(_table(diagnosis))
        console.print(f"written to {where / 'diagnosis' / 'report.html'}", highlight=False)
        found.append(diagnosis)
    return found


def write_diagnosis(
    folder: Path, name: str, label: str, facts: str, model: nn.Module, findings: Sequence[Finding]
) -> Diagnosis:
    """Write the report, the numbers and the figures of a diagnosis.

    Args:
        folder: where to.
        name: the network's name in its run.
        label: the network's name in words.
        facts: data, seed and solver in one line.
        model: the network.
        findings: what the diagnostics found.
    """
    folder = make_folder(folder)
    diagnosis = Diagnosis(name, label, facts, verdict_of(findings), list(findings), draw(findings, folder / "figures"))
    write_json(folder / "diagnosis.json", numbers(diagnosis))
    write_text(folder / "diagnosis.csv", csv(diagnosis))
    write_text(folder / "report.md", markdown(diagnosis, folder))
    write_text(folder / "report.html", html(diagnosis))
    return diagnosis


def numbers(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as JSON."""
    rows = []
    for f in diagnosis.findings:
        row: dict[str, Any] = {"diagnostic": f.diagnostic, "block": f.block, "note": f.note}
        if f.result is not None:
            row |= {"verdict": f.result.verdict, "sentence": f.result.sentence, "numbers": f.result.numbers()}
        rows.append(row)
    return {"network": diagnosis.name, "label": diagnosis.label, "verdict": diagnosis.verdict, "findings": rows}


def _table(diagnosis: Diagnosis) -> Table:
    table = Table(title=f"{diagnosis.label}: is it an ODE? {VERDICTS[diagnosis.verdict]}", title_justify="left")
    for heading in ("diagnostic", "block", "like an ODE", "what was found"):
        table.add_column(heading)
    for f in diagnosis.findings:
        block = "" if f.block is None else str(f.block)
        verdict = "not run" if f.result is None else VERDICTS[f.result.verdict]
        table.add_row(
            diagnostics[f.diagnostic].title, block, verdict, f.note if f.result is None else f.result.sentence
        )
    return table

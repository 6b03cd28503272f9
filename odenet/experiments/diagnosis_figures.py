"""The figures of a diagnosis: one for each diagnostic, a panel for each block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from odenet import plotting
from odenet.diagnostics import Finding
from odenet.diagnostics.stability import Stability, largest_root
from odenet.solvers.stepper import Stepper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Files = dict[str, Path]
PANELS = 9


def draw(findings: Sequence[Finding], folder: Path) -> dict[str, Files]:
    """Draw and save what each diagnostic has a figure of.

    Args:
        findings: what was found.
        folder: where the figures go.

    Returns:
        For each diagnostic with a figure its files, by kind: "png" and "svg".
    """
    files = {}
    for name in dict.fromkeys(f.diagnostic for f in findings):
        shown = [f for f in findings if f.diagnostic == name and f.result is not None and f.result.curves is not None]
        figure = figure_of(shown[:PANELS])
        if figure is not None:
            files[name] = plotting.save(figure, folder / name)
    return files


def figure_of(findings: Sequence[Finding]) -> Figure | None:
    """The figure of the findings of one diagnostic, or None if they have nothing to show."""
    titles = ["" if f.block is None else f"block {f.block}" for f in findings]
    results = [f.result for f in findings]
    if any(isinstance(r, Stability) for r in results):
        panels = {
            title: (r.z.flatten(1).numpy(), np.asarray(r.depths), r.solver, partial(_amplification, r.method))
            for title, r in zip(titles, results, strict=True)
            if isinstance(r, Stability)
        }
        return plotting.stability_region(panels)
    curves = {t: r.curves for t, r in zip(titles, results, strict=True) if r is not None and r.curves is not None}
    curves = {title: c for title, c in curves.items() if any(len(line.x) for line in c.lines)}
    return plotting.curves(curves) if curves else None


def _amplification(method: Stepper, z: np.ndarray) -> np.ndarray:
    return largest_root(method, torch.from_numpy(z)).numpy()

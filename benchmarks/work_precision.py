"""The chart "work-precision": error against calls of F for the adaptive explicit methods on four problems.

    python -m benchmarks.work_precision    # writes docs/figures/work_precision.png

Every point is one solve with rtol = atol; the error is the largest over 20 outputs, so dense output counts too.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch

import odenet
from benchmarks.peers import TIMES
from odenet.plotting.style import INK, LEGEND, SMALL, Line, columns_for, dress, new_figure
from tests.oracles.detest import DETEST, END, reference

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "work_precision.png"
PROBLEMS = ("B1", "E2", "D3", "C5")
TOLERANCES = [10.0**-k for k in range(2, 13)]
MOST = 8_000  # calls of F; a method's line ends there
LOOSE = 1e-3  # a solve may break down at such a tolerance and not at a tighter one
# One colour for each order, and one pattern for each method of it.
LINES = {
    "adaptive_heun": Line("#999933"),
    "fehlberg2": Line("#999933", (5, 1.5)),
    "alf": Line("#999933", (1.2, 1.2)),
    "reversible_heun": Line("#999933", (5, 1.5, 1.2, 1.5)),
    "bosh3": Line("#56b4e9"),
    "fehlberg45": Line("#009e73", (5, 1.5)),
    "cash_karp": Line("#009e73", (1.2, 1.2)),
    "dopri5": Line("#009e73"),
    "tsit5": Line("#009e73", (5, 1.5, 1.2, 1.5)),
    "vern7": Line("#d55e00"),
    "dopri8": Line("#aa3377"),
}


def curve(problem: str, method: str) -> tuple[list[int], list[float]]:
    """(calls, errors), from loose to tight tolerances, until a solve wants more than `MOST` calls."""
    given = next(p for p in DETEST if p.name == problem)
    exact = reference(problem, TIMES)
    y0 = torch.tensor(given.y0, dtype=torch.float64)
    calls, errors = [], []
    for tolerance in TOLERANCES:
        with torch.no_grad():
            solution = odenet.solve(
                lambda t, y: given.F(t, y, torch), y0, (0.0, END), solver=method, rtol=tolerance, atol=tolerance,
                ts=TIMES, max_nfe=MOST, on_failure="status",
            )  # fmt: skip
        if solution.status == "nfe_budget" and tolerance < LOOSE:
            break
        if solution.error is not None:  # too loose for this problem
            continue
        calls.append(solution.stats.nfe)
        errors.append(float(np.abs(solution.ys.numpy() - exact).max() / np.abs(exact).max()))
    return calls, errors


def main() -> None:
    torch.set_num_threads(1)
    columns = columns_for(len(PROBLEMS))
    figure = new_figure(7.6, 6.8)
    panels = figure.subplots(len(PROBLEMS) // columns, columns)
    for axes, name in zip(chain.from_iterable(panels), PROBLEMS, strict=True):
        about = next(p.about for p in DETEST if p.name == name)
        fewest = MOST
        for method, line in LINES.items():
            calls, errors = curve(name, method)
            fewest = min([fewest, *calls])
            axes.loglog(
                calls, errors, color=line.color, linestyle=line.linestyle, linewidth=line.width, marker="o",
                markersize=2.6, label=method,
            )  # fmt: skip
        dress(axes, f"{name}: {about}")
        axes.set_ylim(1e-13, 10)
        axes.set_xlim(0.8 * fewest, 1.2 * MOST)
    for axes in panels[-1]:
        axes.set_xlabel("evaluations of F")
    for row in panels:
        row[0].set_ylabel("largest error / largest |y|")
    handles, labels = panels[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=6, handlelength=2.6, **LEGEND)
    for text in legend.get_texts():
        text.set(color=INK, fontsize=SMALL)
    figure.savefig(FIGURE, facecolor="white")
    print(FIGURE)


if __name__ == "__main__":
    main()

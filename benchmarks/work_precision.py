"""The charts "work-precision": error against evaluations for all adaptive methods on four problems.

    python -m benchmarks.work_precision [explicit] [implicit]    # writes docs/figures/work_precision*.png

Every point is one solve with rtol = atol; the error is the largest over 20 outputs, so dense output counts too. Work is
the calls of F, and for implicit methods the vector-Jacobian products that make the Jacobians as well.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import NullFormatter

import odenet
from benchmarks.peers import TIMES
from odenet.plotting.style import INK, LEGEND, SMALL, Line, columns_for, dress, new_figure
from tests.oracles.detest import DETEST, END, reference

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
PROBLEMS = ("B1", "E2", "D3", "C5")
TOLERANCES = [10.0**-k for k in range(2, 13)]
MOST, MOST_IMPLICIT = 8_000, 10_000  # evaluations; a method's line ends there
LOOSE = 1e-3  # a solve may break down at such a tolerance and not at a tighter one
# One colour for each order, and one pattern and one of these marks for each method of it.
MARKS = "osDv"
EXPLICIT = {
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
IMPLICIT = {
    "implicit_euler": Line("#ee99aa"),
    "trapezoid": Line("#999933", (1.2, 1.2)),
    "sdirk2": Line("#999933"),
    "trbdf2": Line("#999933", (5, 1.5)),
    "kvaerno3": Line("#56b4e9"),
    "kvaerno4": Line("#0072b2"),
    "kvaerno5": Line("#009e73"),
    "radau5": Line("#009e73", (5, 1.5)),
    "dopri5": Line("#b0b0b0"),
}


def curve(problem: str, method: str, most: int) -> tuple[list[int], list[float]]:
    """(evaluations, errors), from loose to tight tolerances, until a solve wants more than `most` evaluations."""
    given = next(p for p in DETEST if p.name == problem)
    exact = reference(problem, TIMES)
    y0 = torch.tensor(given.y0, dtype=torch.float64)
    done, work, errors = [0], [], []

    def F(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        done[0] += 1 + (y.numel() if torch.is_grad_enabled() else 0)  # only where a Jacobian is wanted
        return given.F(t, y, torch)

    for tolerance in TOLERANCES:
        done[0] = 0
        with torch.no_grad():
            solution = odenet.solve(
                F, y0, (0.0, END), solver=method, rtol=tolerance, atol=tolerance, ts=TIMES, max_nfe=most,
                on_failure="status",
            )  # fmt: skip
        if (solution.status == "nfe_budget" or done[0] > most) and tolerance < LOOSE:
            break
        if solution.error is not None or done[0] > most:  # too loose for this problem
            continue
        work.append(done[0])
        errors.append(float(np.abs(solution.ys.numpy() - exact).max() / np.abs(exact).max()))
    return work, errors


def draw(lines: dict[str, Line], most: int, unit: str, path: Path) -> None:
    """One panel a problem."""
    columns = columns_for(len(PROBLEMS))
    figure = new_figure(7.6, 6.8)
    panels = figure.subplots(len(PROBLEMS) // columns, columns)
    for axes, name in zip(chain.from_iterable(panels), PROBLEMS, strict=True):
        about = next(p.about for p in DETEST if p.name == name)
        fewest = most
        seen: Counter[str] = Counter()
        for method, line in lines.items():
            mark = MARKS[seen[line.color]]
            seen[line.color] += 1
            work, errors = curve(name, method, most)
            fewest = min([fewest, *work])
            axes.loglog(
                work, errors, color=line.color, linestyle=line.linestyle, linewidth=line.width, marker=mark,
                markersize=3.4, markerfacecolor=line.color if mark == "o" else "white", markeredgewidth=0.7,
                label=method,
            )  # fmt: skip
        dress(axes, f"{name}: {about}")
        axes.set_ylim(1e-13, 10)
        axes.set_xlim(min(0.8 * fewest, 95), 1.2 * most)  # two powers of ten at least
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in panels[-1]:
        axes.set_xlabel(unit)
    for row in panels:
        row[0].set_ylabel("largest error / largest |y|")
    handles, labels = panels[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=6, handlelength=2.6, **LEGEND)
    for text in legend.get_texts():
        text.set(color=INK, fontsize=SMALL)
    figure.savefig(path, facecolor="white")
    print(path)


def main() -> None:
    torch.set_num_threads(1)
    which = sys.argv[1:] or ("explicit", "implicit")
    if "explicit" in which:
        draw(EXPLICIT, MOST, "evaluations of F", FIGURES / "work_precision.png")
    if "implicit" in which:
        unit = "evaluations of F and vector-Jacobian products"
        draw(IMPLICIT, MOST_IMPLICIT, unit, FIGURES / "work_precision_implicit.png")


if __name__ == "__main__":
    main()

"""What a comparison leaves in its folder: results, tables, figures, and the report that puts them into words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odenet import plotting
from odenet.artifacts import make_folder, write_json, write_text
from odenet.experiments.claims import judge
from odenet.experiments.report_page import Page, Picture, html, markdown
from odenet.experiments.report_seeds import seed_summary, write_seed_summary
from odenet.experiments.report_table import TABLE_COLUMNS, result_table, results_csv, swap_csv, terminal_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "TABLE_COLUMNS",
    "result_table",
    "seed_summary",
    "terminal_table",
    "write_report",
    "write_seed_summary",
]

CAPTIONS = {
    "claim": ("What the paper’s claim is about", "The numbers by which the claim at the end is judged."),
    "accuracy_nfe": (
        "Accuracy and function evaluations",
        "Each trained network, its weights untouched, walked by other solvers. Above: Euler’s method with more and "
        "more steps; a line that stays level belongs to a network whose accuracy does not depend on how finely depth "
        "is walked. Below: each network by itself with all solvers. A ring marks the solver that a network was "
        "trained with, dashed lines are the controls. The scale is by error rate: "
        "equal heights are equal factors of errors.",
    ),
    "swap_matrix": (
        "Every network under every solver",
        "Rows are networks, columns are solvers with their steps or tolerance. Above: test accuracy. Below: the share "
        "of test samples whose class is not the one that they had under the training solver (framed), whether that was "
        "right or wrong.",
    ),
    "training_curves": (
        "Training",
        "Loss (logarithmic), test accuracy (by error rate) and evaluations of F in each epoch. Lines of NFE that "
        "coincide are drawn side by side. An adaptive solver chooses its NFE: a rising line means that the same "
        "tolerance took more evaluations as training went on.",
    ),
    "monitor": (
        "Is it an ODE, while it is trained?",
        "Measured at ends of epochs on a fixed batch of training samples: the relative change of a block’s output when "
        "every step is halved, the size of F, its evaluations, and the network’s score minus that under a finer "
        "solver. Where steps are adapted, the evaluations show it: they double where the scores differ and fall by "
        "a tenth where they do not (Ott et al. 2021).",
    ),
    "hidden_states": (
        "Hidden states through depth",
        "The way of test samples through the last block, in the two principal components of each network’s own states "
        "(in brackets their share of the variance), coloured by class. Dots are layers or accepted steps, larger marks "
        "the final states. Positions cannot be compared between panels, shapes can.",
    ),
}


def write_report(
    folder: str | Path,
    results: dict[str, Any],
    hidden: Mapping[str, Mapping[str, Any]],
    config_yaml: str,
    environment: Mapping[str, Any],
) -> dict[str, Path]:
    """Write everything that a comparison found; each file atomically, the numbers before the pictures.

    Args:
        folder: the run folder; made if need be.
        results: results of the comparison.
        hidden: hidden states by the name of the network, may be empty.
        config_yaml: the resolved config.
        environment: versions and device.

    Returns:
        The files by their path relative to the folder: results.json, results.csv, swap.csv, config.yaml,
        environment.json, figures/*.png, figures/*.svg, report.md, report.html. A figure that has nothing to show
        is left out.

    Raises:
        RunError: a file cannot be written; those before it are, and what stood there before is untouched.
    """
    folder = make_folder(folder)
    written = {
        "results.json": write_json(folder / "results.json", results),
        "results.csv": write_text(folder / "results.csv", results_csv(results)),
        "swap.csv": write_text(folder / "swap.csv", swap_csv(results)),
        "config.yaml": write_text(folder / "config.yaml", config_yaml),
        "environment.json": write_json(folder / "environment.json", dict(environment)),
    }
    pictures = []
    for name, draw in _figures(results, hidden).items():
        files = plotting.save(draw(), folder / "figures" / name)
        written |= {f"figures/{path.name}": path for path in files.values()}
        pictures.append(Picture(*CAPTIONS[name], files))
    page = Page(results, pictures, config_yaml, environment)
    written["report.md"] = write_text(folder / "report.md", markdown(page, folder))
    written["report.html"] = write_text(folder / "report.html", html(page))
    return written


def _figures(results: dict[str, Any], hidden: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[[], Figure]]:
    """The figures that these results have something for."""
    swapped = any(network["swap"] for network in results["contenders"])
    walked = any(cell.get("pieces") is None for network in results["contenders"] for cell in network["swap"])
    claim = judge([results])
    followed = any(network["name"] in hidden for network in results["contenders"])
    figures: dict[str, Callable[[], Figure]] = {}
    if claim is not None and claim.panels:
        figures["claim"] = lambda: plotting.curves(claim.panels)
    if walked:
        figures["accuracy_nfe"] = lambda: plotting.accuracy_nfe(_as_they_are(results))
    if swapped:
        figures["swap_matrix"] = lambda: plotting.swap_matrix(results)
    figures["training_curves"] = lambda: plotting.training_curves(results)
    if plotting.monitored(results):
        figures["monitor"] = lambda: plotting.monitor(results)
    if followed:
        figures["hidden_states"] = lambda: plotting.hidden_states(hidden, results)
    return figures


def _as_they_are(results: dict[str, Any]) -> dict[str, Any]:
    """The results without walks for which the weights were refined or coarsened."""
    contenders = [
        {**network, "swap": [cell for cell in network["swap"] if cell.get("pieces") is None]}
        for network in results["contenders"]
    ]
    return {**results, "contenders": contenders}

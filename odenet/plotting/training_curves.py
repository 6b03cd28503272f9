"""Figure: how training went. Loss, test accuracy and function evaluations over the epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from odenet.plotting import style
from odenet.plotting.style import Line, Results, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("train_loss", "Training loss (cross-entropy)"),
    ("test_accuracy", "Test accuracy"),
    ("nfe_forward", "NFE of a forward pass"),
    ("nfe_backward", "NFE of a backward pass"),
)
NAME_WIDTH, LEGEND_COLUMNS = 30, 4
APART = 1.7  # points between lines that coincide


def training_curves(results: Results) -> Figure:
    """Four panels over the epochs: training loss, test accuracy, NFE forward, NFE backward.

    Lines that coincide in an NFE panel are drawn side by side, like those of an underground map.

    Args:
        results: results of a comparison, as in results.json.

    Returns:
        The figure; the loss is logarithmic, accuracy is scaled by error rate.
    """
    networks = results["contenders"]
    lines = style.network_lines(results)
    rows = math.ceil(len(networks) / LEGEND_COLUMNS)
    names = [plain(n["label"], NAME_WIDTH) for n in networks]
    legend = 0.16 * rows * (2 if any("\n" in name for name in names) else 1) + 0.25
    figure = style.new_figure(9.6, 5.2 + legend)
    panels = figure.subplots(2, 2, sharex=True)
    handles: list[Any] = []
    for axes, (key, title) in zip(panels.flat, PANELS, strict=True):
        style.dress(axes, title)
        shifts = _shifts(networks, key) if key.startswith("nfe") else [0.0] * len(networks)
        handles = [
            _curve(axes, network["history"], key, lines[network["name"]], shift)
            for network, shift in zip(networks, shifts, strict=True)
        ]
    _scale(panels.flat, networks, results["data"]["n_test"])
    for axes in panels[1]:
        axes.set_xlabel("epoch")
    key = {**style.LEGEND, "ncols": min(LEGEND_COLUMNS, max(1, len(networks))), "handlelength": 2.4}
    figure.legend(handles, names, loc="outside lower center", **key)
    return figure


def _shifts(networks: list[dict[str, Any]], key: str) -> list[float]:
    """Points by which to move each line up, so that none hides another that has the same values."""
    values = [str([record[key] for record in n["history"]]) for n in networks]
    shifts = []
    for index, value in enumerate(values):
        before, count = values[:index].count(value), values.count(value)
        shifts.append(APART * (before - (count - 1) / 2))
    return shifts


def _curve(axes: Axes, history: list[dict[str, Any]], key: str, line: Line, shift: float) -> Any:
    """One network's line in one panel; returns it. A point that has no neighbour is drawn as a dot."""
    from matplotlib.transforms import ScaledTranslation

    x = [number(record["epoch"]) for record in history]
    y = [number(record[key]) for record in history]
    look: dict[str, Any] = {"color": line.color}
    if shift:
        scale = axes.get_figure().dpi_scale_trans  # type: ignore[union-attr]
        look["transform"] = axes.transData + ScaledTranslation(0, shift / 72, scale)
    known = [math.isfinite(v) for v in y]
    alone = [
        (a, b)
        for i, (a, b) in enumerate(zip(x, y, strict=True))
        if known[i] and not any(known[max(0, i - 1) : i] + known[i + 1 : i + 2])
    ]
    axes.plot([a for a, _ in alone], [b for _, b in alone], "o", markersize=4, **look)
    return axes.plot(x, y, linewidth=line.width, linestyle=line.linestyle, **look)[0]


def _scale(panels: Iterable[Axes], networks: list[dict[str, Any]], n_test: int) -> None:
    """Limits and ticks of the four panels, from what they show."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    loss, accuracy, *evaluations = panels
    losses = [number(record["train_loss"]) for n in networks for record in n["history"]]
    positive = [value for value in losses if value > 0]
    if positive:
        loss.set_yscale("log")
        wide = max(positive) > 50 * min(positive)
        loss.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 3.0, 5.0, 7.0)))
        loss.yaxis.set_minor_formatter(NullFormatter())
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    style.accuracy_scale(accuracy, [r["test_accuracy"] for n in networks for r in n["history"]], n_test)
    for axes, key in zip(evaluations, ("nfe_forward", "nfe_backward"), strict=True):
        most = max([1.0, *(v for n in networks for record in n["history"] if (v := number(record[key])) > 0)])
        axes.set_ylim(-0.05 * most, 1.06 * most)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    loss.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    epochs = [record["epoch"] for n in networks for record in n["history"]]
    if epochs:
        pad = max(0.02 * (max(epochs) - min(epochs)), 0.3)
        loss.set_xlim(min(epochs) - pad, max(epochs) + pad)

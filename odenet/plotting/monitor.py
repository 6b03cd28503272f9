"""Figure: how far from its ODE each block was while it was trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from odenet.plotting import style
from odenet.plotting.style import Results, number, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("defect", "Step-halving defect δ"),
    ("F", "‖F‖, mean over steps and samples"),
    ("nfe", "Evaluations of F"),
    ("score", "Score minus that of the finer solver"),
)
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
NAME_WIDTH, LEGEND_COLUMNS = 30, 4


def monitored(results: Results) -> list[dict[str, Any]]:
    """The networks that were monitored while they were trained."""
    return [n for n in results["contenders"] if any(record.get("monitor") for record in n["history"])]


def monitor(results: Results) -> Figure:
    """Four panels over the epochs: step-halving defect, ‖F‖, NFE, and what a finer solver does to the score.

    Args:
        results: results of a comparison, or of one training as its only contender; see `OdeMonitor`.

    Returns:
        The figure: a line for each network, of several blocks one for each, and the score of the network as a whole.
    """
    networks, colors = monitored(results), style.network_lines(results)
    figure = style.new_figure(9.6, 5.2 + 0.2 * math.ceil(len(networks) / LEGEND_COLUMNS) + 0.25)
    panels = figure.subplots(2, 2, sharex=True)
    handles: dict[str, Any] = {}
    for axes, (key, title) in zip(panels.flat, PANELS, strict=True):
        style.dress(axes, title)
        for network in networks:
            found = [(record["epoch"], record["monitor"]) for record in network["history"] if record.get("monitor")]
            epochs = [epoch for epoch, _ in found]
            blocks = sum(name.endswith("/defect") for name in found[0][1])
            for block in range(1 if key == "score" else blocks):
                name = f"{network['label']}, block {block}" if blocks > 1 else network["label"]
                look: dict[str, Any] = {"color": colors[network["name"]].color, "linewidth": 1.6}
                look["linestyle"] = (0, DASHES[block % 4]) if DASHES[block % 4] else "solid"
                look["marker"], look["markersize"] = ("o" if len(epochs) <= 30 else ""), 3
                y = [_value(values, key, block) for _, values in found]
                (line,) = axes.plot(epochs, y, **look)
                handles.setdefault(plain(name, NAME_WIDTH), line)
        drawn = [y for line in axes.lines for y in line.get_ydata() if math.isfinite(y)]  # type: ignore[union-attr]
        if key == "defect" and any(y > 0 for y in drawn):
            axes.set_yscale("log")
            axes.tick_params(which="minor", labelsize=style.SMALL)
        elif key == "score":
            axes.axhline(0.0, color=style.CONTROLS[0], linewidth=0.9, zorder=1)
            most = max([0.01, *(1.15 * abs(y) for y in drawn)])
            axes.set_ylim(-most, most)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        elif drawn:
            axes.set_ylim(0, 1.08 * max(drawn) or 1.0)
    for axes in panels[1]:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    key = {**style.LEGEND, "ncols": min(LEGEND_COLUMNS, len(handles)), "handlelength": 2.8}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", **key)
    return figure


def _value(values: dict[str, Any], key: str, block: int) -> float:
    if key == "score":
        return number(values["score"]) - number(values["score_finer"])
    return number(values.get(f"block{block}/{key}"))

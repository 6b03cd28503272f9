"""Figure: the way of test samples through depth, in the plane that shows most of their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet.plotting import style
from odenet.plotting.style import Results, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PER_CLASS = 15
ENDS = "osD^vPXhp<>*"
Hidden = Mapping[str, Mapping[str, Any]]


def hidden_states(hidden: Hidden, results: Results) -> Figure:
    """One panel for each network: the paths of test samples from the first to the last depth, coloured by class.

    A network of discrete layers is a polyline with a dot for each layer. One of continuous depth is a smooth curve,
    with a dot for each step that its solver accepted. Each panel has the principal components of its own network,
    so shapes can be compared between panels, positions cannot.

    Args:
        hidden: for each network `curves` (T, n, 2) or None, `dots` (steps + 1, n, 2), `labels` (n,) and `explained`,
            the shares of the variance along the two components. Up to 15 samples of a class are drawn.
        results: results of the comparison: order and labels of the networks, classes.

    Returns:
        The figure.
    """
    networks = [n for n in results["contenders"] if n["name"] in hidden]
    classes = [str(c) for c in results["data"]["classes"]]
    columns = style.columns_for(len(networks))
    rows = max(1, math.ceil(len(networks) / columns))
    width = max(3.15 * columns, 4.5)
    figure = style.new_figure(width, 3.0 * rows + 0.75)
    lines = style.network_lines(results)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, network in zip(panels, networks, strict=False):
        title = plain(network["label"], 32)
        axes.set_title(title, loc="left", fontsize=style.FONT, color=lines[network["name"]].text_color, pad=4)
        _panel(axes, hidden[network["name"]], classes)
    for axes in panels[len(networks) :]:
        axes.remove()
    handles = _legend(classes)
    longest = max(len(str(handle.get_label())) for handle in handles)
    fit = max(1, int((width - 0.3) / (0.34 + 0.065 * longest)))
    even = math.ceil(len(handles) / math.ceil(len(handles) / fit))
    figure.legend(handles=handles, loc="outside lower center", **style.LEGEND, ncols=even)
    return figure


def _panel(axes: Axes, paths: Mapping[str, Any], classes: list[str]) -> None:
    dots, labels = np.asarray(paths["dots"], dtype=float), np.asarray(paths["labels"])
    smooth = paths.get("curves")
    curves = dots if smooth is None else np.asarray(smooth, dtype=float)
    drawn = _few_of_each(labels)
    for sample in drawn:
        color = style.class_color(int(labels[sample]))
        thin = {"color": color, "alpha": 0.55, "linewidth": 0.8, "solid_capstyle": "round"}
        axes.plot(*curves[:, sample].T, zorder=1, **thin)
        axes.plot(*dots[1:-1, sample].T, ".", color=color, alpha=0.55, markersize=2.2, markeredgewidth=0, zorder=1)
    axes.plot(*dots[0, drawn].T, "o", color=style.MUTED, markersize=1.8, markeredgewidth=0, zorder=2, label="start")
    for index in range(len(classes)):
        members = [s for s in drawn if labels[s] == index]
        end = {"color": style.class_color(index), "markeredgecolor": "white", "markeredgewidth": 0.4, "markersize": 4.4}
        axes.plot(*dots[-1, members].T, ENDS[index % len(ENDS)], linestyle="", zorder=3, label=classes[index], **end)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(style.GRID)
    shares = [number(share) for share in paths["explained"]]
    for which, (share, name) in enumerate(zip(shares, (axes.set_xlabel, axes.set_ylabel), strict=False), start=1):
        text = f"PC {which} ({100 * share:.0f} %)" if math.isfinite(share) else f"PC {which}"
        name(text, fontsize=style.SMALL, color=style.MUTED, labelpad=3)


def _few_of_each(labels: np.ndarray) -> list[int]:
    """Indices of the samples that are drawn: the first few of each class."""
    chosen = [np.flatnonzero(labels == c)[:MOST_PER_CLASS] for c in np.unique(labels)]
    return np.sort(np.concatenate(chosen)).tolist() if chosen else []


def _legend(classes: list[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = []
    for index, name in enumerate(classes):
        look = {"color": style.class_color(index), "markeredgecolor": "white", "markeredgewidth": 0.4, "markersize": 6}
        label = plain(name, 24, 1)
        handles.append(Line2D([], [], linestyle="", marker=ENDS[index % len(ENDS)], label=label, **look))
    start = {"color": style.MUTED, "markersize": 2.5, "label": "start"}
    return [*handles, Line2D([], [], linestyle="", marker="o", **start)]

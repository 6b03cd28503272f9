"""Figure: what an evaluation of F buys. Test accuracy of each trained network under every solver, against its NFE."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from odenet.plotting import style
from odenet.plotting.labels import EndLabel, label_ends
from odenet.plotting.style import Line, Results, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"euler": "o", "midpoint": "^", "rk4": "s", "dopri5": "D"}
OTHER_MARKERS = ("v", "P", "X", "h", "p", "<", ">", "*")
OVERVIEW, PANEL, LABEL = 3.5, 2.0, 0.22  # heights in inches
Network = dict[str, Any]


def accuracy_nfe(results: Results) -> Figure:
    """Test accuracy against function evaluations, under every solver that the networks were walked with.

    The large panel overlays the Euler sequences of all networks; a small panel for each network adds the other solvers.
    A ring marks the solver that a network was trained with; dashed lines are the controls.

    Args:
        results: results of a comparison, as in results.json.

    Returns:
        The figure; y is scaled by error rate (see `style.accuracy_scale`).
    """
    lines = style.network_lines(results)
    networks = [n for n in results["contenders"] if n["role"] != "control"]
    controls = [n for n in results["contenders"] if n["role"] == "control"]
    columns = style.columns_for(len(networks))
    rows = math.ceil(len(networks) / columns)
    large = max(OVERVIEW, 0.9 + LABEL * len(results["contenders"]))
    small = PANEL * rows + 0.5 if rows else 0.0
    figure = style.new_figure(9.6, large + small)
    places: Any = figure.subfigures(2, 1, height_ratios=(large, small)) if rows else (figure, None)
    upper, lower = places
    overview = upper.subplots()
    panels = list(lower.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat) if lower else []
    for axes in (overview, *panels):
        style.dress(axes)
        _scale(axes, networks, controls, results["data"]["n_test"])
    _draw_overview(overview, networks, controls, lines, large - 0.9)
    _draw_panels(panels, networks, controls, lines)
    if lower is not None:
        lower.legend(handles=_legend(networks), loc="outside lower center", **style.LEGEND, ncols=6)
    return figure


def _draw_overview(
    axes: Axes, networks: list[Network], controls: list[Network], lines: dict[str, Line], height: float
) -> None:
    axes.set_title(
        "Each network under Euler’s method, weights untouched (ring: as it was trained)",
        loc="left",
        fontsize=style.TITLE,
        pad=6,
    )
    axes.set_xlabel("evaluations of F in a forward pass (NFE)")
    axes.set_ylabel("test accuracy")
    labels = []
    for network in networks:
        line = lines[network["name"]]
        _euler(axes, network, line, 3.5)
        _ring(axes, network, line, 9)
        labels.append(EndLabel(_right_end(network), network["label"], line.text_color))
    for control in controls:
        line = lines[control["name"]]
        labels.append(EndLabel(_level(axes, control, line), control["label"], line.text_color))
    label_ends(axes, labels, height)


def _draw_panels(axes: list[Axes], networks: list[Network], controls: list[Network], lines: dict[str, Line]) -> None:
    markers, columns = _markers(networks), style.columns_for(len(networks))
    for panel, network in zip(axes, networks, strict=False):
        line = lines[network["name"]]
        panel.set_title(plain(network["label"], 32), loc="left", fontsize=style.FONT, color=line.text_color, pad=4)
        for control in controls:
            _level(panel, control, lines[control["name"]], 0.8)
        for other in networks:
            if other is not network:
                _euler(panel, other, Line("#d0d0d0", width=0.9), 0)
        _euler(panel, network, line, 3.2)
        for solver, marker in markers.items():
            x, y = _points(network, solver)
            panel.plot(x, y, marker, color=line.color, markersize=4.2, markerfacecolor="white", zorder=3)
        _ring(panel, network, line, 8)
    for panel in axes[len(networks) :]:
        panel.remove()
    for number_of_panel, panel in enumerate(axes[: len(networks)]):
        panel.tick_params(labelbottom=True)
        if number_of_panel % columns == 0:
            panel.set_ylabel("test accuracy")
        if number_of_panel >= (math.ceil(len(networks) / columns) - 1) * columns:
            panel.set_xlabel("NFE")


def _scale(axes: Axes, networks: list[Network], controls: list[Network], n_test: int) -> None:
    """Both axes: NFE by powers of two, accuracy by error rate, wide enough for everything that is drawn."""
    accuracies = [n["test_accuracy"] for n in (*networks, *controls)]
    evaluations = []
    for network in networks:
        for cell in network["swap"]:
            if cell["nfe"] and cell["accuracy"] is not None:
                accuracies.append(cell["accuracy"])
                evaluations.append(number(cell["nfe"]))
        evaluations.append(number(network["nfe_forward"]))
    evaluations = [e for e in evaluations if e > 0] or [1.0]
    axes.set_xscale("log", base=2)
    low, high = math.log2(min(evaluations)) - 0.3, math.log2(max(evaluations)) + 0.15
    high = max(high, low + 2)
    axes.set_xlim(2.0**low, 2.0**high)
    stride = 1 if high - low <= 10 else 2
    ticks = [2.0**p for p in range(math.ceil(low), math.floor(high) + 1, stride)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    style.accuracy_scale(axes, accuracies, n_test)


def _points(network: Network, solver: str) -> tuple[list[float], list[float]]:
    """NFE and accuracy of the cells of one solver, by NFE; NaN where a cell was not evaluated."""
    cells = [c for c in network["swap"] if c["solver"] == solver and c["nfe"]]
    pairs = sorted((number(c["nfe"]), number(c["accuracy"])) for c in cells)
    return [p[0] for p in pairs], [p[1] for p in pairs]


def _euler(axes: Axes, network: Network, line: Line, size: float) -> None:
    x, y = _points(network, "euler")
    front = 2.5 if size else 1.5
    axes.plot(
        x,
        y,
        color=line.color,
        linewidth=line.width,
        linestyle=line.linestyle,
        marker="o" if size else "",
        markersize=size,
        zorder=front,
    )


def _trained_at(network: Network) -> tuple[float, float, str]:
    """NFE and accuracy under the training solver, and the solver's name."""
    for cell in network["swap"]:
        if cell["trained"] and cell["accuracy"] is not None and cell["nfe"]:
            return number(cell["nfe"]), number(cell["accuracy"]), cell["solver"]
    solver = network["solver"]["solver"] if network["solver"] else ""
    return number(network["nfe_forward"]), number(network["test_accuracy"]), solver


def _ring(axes: Axes, network: Network, line: Line, size: float) -> None:
    """The training solver: its own marker, filled, in a ring."""
    x, y, solver = _trained_at(network)
    if not (x > 0 and math.isfinite(y)):
        return
    marker = MARKERS.get(solver, "o")
    axes.plot([x], [y], marker, color=line.color, markersize=0.5 * size, zorder=4)
    ring = {"markerfacecolor": "none", "markeredgecolor": line.color, "markeredgewidth": 1.4}
    axes.plot([x], [y], "o", markersize=1.35 * size, zorder=4, label="trained", **ring)


def _level(axes: Axes, control: Network, line: Line, width: float | None = None) -> float:
    """A control as a dashed line across; returns its height."""
    y = number(control["test_accuracy"])
    if math.isfinite(y):
        axes.axhline(y, color=line.color, linewidth=width or line.width, linestyle=line.linestyle, zorder=1)
    return y


def _right_end(network: Network) -> float:
    """Height at which a network's name belongs: the last point of its Euler line, or its own accuracy."""
    x, y = _points(network, "euler")
    known = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    return known[-1][1] if known else number(network["test_accuracy"])


def _markers(networks: list[Network]) -> dict[str, str]:
    """The marker of every solver but Euler."""
    solvers = dict.fromkeys(c["solver"] for n in networks for c in n["swap"] if c["solver"] != "euler")
    spare = (m for m in OTHER_MARKERS * (1 + len(solvers)))
    return {s: MARKERS.get(s) or next(spare) for s in solvers}


def _legend(networks: list[Network]) -> list[Any]:
    from matplotlib.lines import Line2D

    ink = {"color": style.INK, "markersize": 4.5}
    handles = [Line2D([], [], marker="o", linewidth=1.2, label="Euler", **ink)]
    for solver, marker in _markers(networks).items():
        handles.append(
            Line2D([], [], marker=marker, linestyle="", markerfacecolor="white", label=plain(solver, 16, 1), **ink)
        )
    ring = {"marker": "o", "linestyle": "", "color": style.INK, "markersize": 10, "markerfacecolor": "none"}
    handles.append(Line2D([], [], markeredgewidth=1.4, label="solver it was trained with", **ring))
    if len(networks) > 1:
        handles.append(Line2D([], [], color="#d0d0d0", linewidth=1, label="the other networks"))
    return handles

"""Figure: what a diagnostic measured, as lines; one panel for each block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from odenet.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.2, 2.5
INTEGERS = ("steps", "evaluations of F", "layers N", "layers after training", "Euler steps after training")


def curves(panels: Mapping[str, Any]) -> Figure:
    """Lines in panels side by side, with one legend.

    Args:
        panels: for each panel its title and its curves: `xlabel`, `ylabel`, `lines` (each `label`, `x`, `y`, `look`),
            `logx` and `logy`, as `odenet.diagnostics.Curves` has them.
    """
    columns = style.columns_for(len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = style.new_figure(max(WIDTH * columns, 4.6), HEIGHT * rows + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for number, (axes, (title, found)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        style.dress(axes, title)
        handles |= _draw(axes, found)
        if number % columns == 0:
            axes.set_ylabel(found.ylabel)
        axes.set_xlabel(found.xlabel)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", **style.LEGEND, ncols=min(4, len(handles))
    )
    return figure


def _first(value: float) -> str:
    """The first digit of a positive number."""
    return f"{value:e}"[0]


def _draw(axes: Axes, found: Any) -> dict[str, Any]:
    """The lines of one panel; returns their handles by their labels."""
    handles: dict[str, Any] = {}
    color = iter(style.NETWORKS * 3)
    for line in found.lines:
        if line.look == "level":
            look: dict[str, Any] = {"color": style.CONTROLS[0], "linewidth": 0.9, "linestyle": (0, (5, 2)), "zorder": 1}
            handles[line.label] = axes.axhline(line.y[0], **look)
            continue
        if line.look == "ring":
            look = {"color": style.CONTROLS[0], "markersize": 9, "fillstyle": "none", "linestyle": "", "marker": "o"}
            (handles[line.label],) = axes.plot([*map(style.number, line.x)], [*map(style.number, line.y)], **look)
            continue
        look = {"color": next(color), "linewidth": 1.5, "markersize": 4}
        look |= {"marker": "o"} if len(line.x) <= 40 or line.look == "points" else {}
        look |= {"linestyle": ""} if line.look == "points" else {}
        look |= {"linestyle": (0, (5, 2)), "marker": ""} if line.look == "dashed" else {}
        x, y = [style.number(v) for v in line.x], [style.number(v) for v in line.y]
        (handles[line.label],) = axes.plot(x, y, **look)
    _scale(axes, found)
    return handles


def _scale(axes: Axes, found: Any) -> None:
    drawn = [(x, y) for line in found.lines if line.look != "level" for x, y in zip(line.x, line.y, strict=True)]
    if found.logx and drawn and all(x > 0 for x, _ in drawn):
        integers = found.xlabel in INTEGERS
        axes.set_xscale("log", base=2 if integers else 10)
        if integers:
            low, high = min(x for x, _ in drawn), max(x for x, _ in drawn)
            powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
            ticks = [2**p for p in powers if p >= 0][:: 1 if len(powers) < 8 else 2]
            axes.set_xticks(ticks, [str(t) for t in ticks])
            axes.set_xticks([], minor=True)
        else:
            _plain_numbers(axes.xaxis, [x for x, _ in drawn])
    axes.tick_params(which="minor", labelsize=style.SMALL)
    if found.logy and any(y > 0 for _, y in drawn):
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis, [y for _, y in drawn if y > 0])
    elif any(line.look == "level" for line in found.lines) and all(y >= 0 for _, y in drawn):
        axes.set_ylim(0, 1.1 * max([y for _, y in drawn] + [line.y[0] for line in found.lines if line.look == "level"]))


def _plain_numbers(axis: Axis, values: list[float]) -> None:
    """Numbers on a logarithmic axis as they are, not as powers of ten, where they are neither tiny nor huge."""
    if min(values) > 1e-3 and max(values) < 1e4:
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        narrow = max(values) < 30 * min(values)
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if narrow and _first(value) in "235" else "")

"""Figure: what an exact gradient costs. Error of each gradient method against its memory, its time as the area."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from odenet.plotting import style
from odenet.plotting.style import NETWORKS, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_ERROR = 1e-17
LABEL = 0.3  # of the axis is as wide as a point with its label, at most
AREA = 160.0  # points², of the fastest
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def gradient_audit(rows: list[dict[str, Any]], title: str = "") -> Figure:
    """Relative error against the bytes held for the backward pass; areas are seconds forward and backward.

    Args:
        rows: as `Audit.rows()` gives them.
        title: stands above.

    Returns:
        The figure; both axes are logarithmic.
    """
    figure = style.new_figure(6.4, 4.0)
    axes = figure.subplots()
    style.dress(axes, title or "Gradient methods on this network and batch")
    rows = [row for row in rows if number(row["bytes"]) > 0]
    seconds = [number(row["seconds_forward"]) + number(row["seconds_backward"]) for row in rows]
    fastest = min(seconds, default=1.0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    points = []
    for index, (row, time) in enumerate(zip(rows, seconds, strict=True)):
        color = NETWORKS[index % len(NETWORKS)]
        x, y = number(row["bytes"]), max(number(row["error"]), LEAST_ERROR)
        area = AREA * time / fastest
        axes.scatter([x], [y], s=area, color=color, alpha=0.35, linewidths=0, zorder=2)
        axes.plot([x], [y], "o", color=color, markersize=3, zorder=3)
        points.append((x, y, area, f"{row['gradient']}  {time / fastest:.1f}×", style.Line(color).text_color))
    _limits(axes, points)
    _labels(axes, points)
    axes.set_xlabel("held for the backward pass (area: time forward and backward, in multiples of the fastest)")
    axes.set_ylabel("relative error of the gradient")
    return figure


def _limits(axes: Any, points: list[tuple[float, float, float, str, str]]) -> None:
    """Room around the points, and ticks that read as bytes."""
    if not points:
        return
    low, high = math.log2(min(p[0] for p in points)), math.log2(max(p[0] for p in points))
    low, high = low - 1, high + max(1.0, 0.35 * (high - low + 2))
    axes.set_xlim(2.0**low, 2.0**high)
    stride = max(1, round((high - low) / 6))
    powers = range(math.ceil(low), math.floor(high) + 1, stride)
    axes.set_xticks([2.0**p for p in powers], [f"{2 ** (p % 10)} {UNITS[p // 10]}" for p in powers])
    axes.set_xticks([], minor=True)
    bottom, top = math.log10(min(p[1] for p in points)), math.log10(max(p[1] for p in points))
    axes.set_ylim(10 ** (bottom - 1), 10 ** (top + 1))


def _labels(axes: Any, points: list[tuple[float, float, float, str, str]]) -> None:
    """Names beside the points; those of points that lie together are stacked."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    line = 0.055 * (high - low)
    left, right = (math.log2(limit) for limit in axes.get_xlim())
    width = LABEL * (right - left)
    taken: list[tuple[float, float]] = []
    for x, y, area, text, color in sorted(points, key=lambda p: -p[1]):
        height = math.log10(y)
        while any(abs(height - other) < line and abs(math.log2(x / where)) < width for where, other in taken):
            height -= line
        taken.append((x, height))
        axes.annotate(
            text, (x, 10**height), (math.sqrt(area / math.pi) + 4, 0), textcoords="offset points", va="center",
            fontsize=style.SMALL, color=color,
        )  # fmt: skip

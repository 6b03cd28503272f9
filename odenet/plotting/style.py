"""How every figure looks, in one place: colours, sizes, axes, the scale for accuracies, and how figures are saved.

Figures are built on `matplotlib.figure.Figure`, never on pyplot: no window, no backend, no global state, so they can be
made on a server and in several threads at once. matplotlib is imported when a figure is made, not before.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet.artifacts import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
FONT, SMALL, TITLE = 9.0, 7.5, 10.0  # points
INK, MUTED, GRID, FRAME = "#1a1a1a", "#5c5c5c", "#e6e6e6", "#9a9a9a"

# Okabe & Ito (2008) without black and yellow, their pink darkened, then Tol's muted scheme:
# distinct for the common forms of colour blindness.
NETWORKS = ("#0072b2", "#d55e00", "#009e73", "#aa3377", "#56b4e9", "#e69f00", "#332288", "#882255", "#999933")
CONTROLS = ("#4d4d4d", "#7a7a7a", "#a0a0a0")
CONTROL_DASHES: tuple[tuple[float, ...], ...] = ((5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (9, 3))
# Petroff (2021), ten colours for categories.
CLASSES = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)

COARSE = (0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1)  # accuracies
FINE = (*COARSE[:6], 0.5, 0.75, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, *COARSE[9:])
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": SMALL, "handletextpad": 0.5, "columnspacing": 1.6}

Results = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """How a network is drawn in every figure.

    Attributes:
        color: its colour.
        dashes: dash pattern in points; empty for a solid line.
        width: line width in points.
    """

    color: str
    dashes: tuple[float, ...] = ()
    width: float = 1.6

    @property
    def linestyle(self) -> Any:
        """The pattern as matplotlib wants it."""
        return (0, self.dashes) if self.dashes else "solid"

    @property
    def text_color(self) -> str:
        """The colour, dark enough for small type on white."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        factor = min(1.0, 115 / (0.30 * red + 0.59 * green + 0.11 * blue + 1e-9))
        return f"#{round(factor * red):02x}{round(factor * green):02x}{round(factor * blue):02x}"


def network_lines(results: Results) -> dict[str, Line]:
    """The line of each network by its name: contenders in colour and solid, controls grey and dashed.

    It depends on the order of the networks only, so all figures of one comparison agree.
    """
    lines: dict[str, Line] = {}
    contenders = controls = 0
    for network in results["contenders"]:
        if network["role"] == "control":
            dashes = CONTROL_DASHES[controls % len(CONTROL_DASHES)]
            lines[network["name"]] = Line(CONTROLS[controls % len(CONTROLS)], dashes, 1.2)
            controls += 1
        else:
            turn = contenders // len(NETWORKS)
            lines[network["name"]] = Line(NETWORKS[contenders % len(NETWORKS)], (6, 1.5) if turn else ())
            contenders += 1
    return lines


def class_color(index: int) -> str:
    """The colour of class number `index`."""
    return CLASSES[index % len(CLASSES)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure on white, laid out so that nothing overlaps.

    Args:
        width: inches.
        height: inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.05)  # type: ignore[union-attr]
    return figure


def dress(axes: Axes, title: str = "", grid: str = "both") -> None:
    """Give axes the house style: no box, a light grid behind the data, small ticks, the title on the left.

    Args:
        axes: the axes.
        title: what they show.
        grid: "both", "x", "y" or "" for none.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.spines[["left", "bottom"]].set_linewidth(0.8)
    axes.tick_params(labelsize=SMALL, color=FRAME, labelcolor=INK, width=0.8, length=3)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
    if title:
        axes.set_title(plain(title), loc="left", fontsize=TITLE, color=INK, pad=6)
    axes.xaxis.label.set(fontsize=FONT, color=INK)
    axes.yaxis.label.set(fontsize=FONT, color=INK)


def plain(text: object, width: int | None = None, lines: int = 2) -> str:
    """`text` as matplotlib shall print it: no mathematics between dollar signs, wrapped and cut to a few even lines.

    Args:
        text: any text, e.g. a label from a config.
        width: characters in a line; None leaves it in one line.
        lines: lines at most; what is too long ends in "…".
    """
    words = " ".join(str(text).split())
    if width is not None:
        wrapped = textwrap.wrap(words, width, max_lines=lines, placeholder="…")
        while width > 8:
            width -= 1
            even = textwrap.wrap(words, width)
            if len(even) != len(wrapped) or max(map(len, even)) > width:
                break
            wrapped = even
        words = "\n".join(wrapped)
    return words.replace("$", r"\$")


def columns_for(panels: int) -> int:
    """Columns of a grid of so many panels."""
    return 2 if panels == 4 else min(3, max(1, panels))


def number(value: Any) -> float:
    """`value` as a float; NaN for None and for what is no finite number."""
    if value is None:
        return math.nan
    found = float(value)
    return found if math.isfinite(found) else math.nan


def accuracy_scale(axes: Axes, accuracies: Iterable[Any], n_test: int) -> None:
    """Scale the y axis of `axes`, which holds accuracies, by error rate (see `accuracy_height`).

    Args:
        axes: the axes.
        accuracies: everything that is drawn, for the limits.
        n_test: size of the test set.
    """
    floor = 0.5 / max(1, n_test)

    def inverse(y: Any) -> Any:
        return 1 + floor - 10.0 ** -np.asarray(y, dtype=float)

    values = np.array([number(a) for a in accuracies])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.5, 0.9)
    bottom, top = accuracy_height([low, high], n_test)
    pad = max(0.06 * (top - bottom), 0.04)
    axes.set_yscale("function", functions=(lambda a: accuracy_height(a, n_test), inverse))
    axes.set_ylim(float(inverse(bottom - pad)), float(inverse(top + pad)))
    ticks = _accuracy_ticks(float(bottom - pad), float(top + pad), n_test)
    axes.set_yticks(ticks, [f"{100 * t:.4g} %" for t in ticks])
    axes.set_yticks([], minor=True)


def accuracy_height(accuracy: Any, n_test: int) -> Any:
    """y = −log₁₀(1 − accuracy + ½ / n_test): an error half as large is the same length higher, wherever it is.

    So 97 and 99 % are about as far apart as 70 and 90 %. The term ½ / n_test, half a test sample, keeps a perfect
    score in the picture.

    Args:
        accuracy: share or array of shares.
        n_test: size of the test set.
    """
    floor = 0.5 / max(1, n_test)
    return -np.log10(np.maximum(1 + floor - np.asarray(accuracy, dtype=float), 1e-3 * floor))


def _accuracy_ticks(bottom: float, top: float, n_test: int) -> list[float]:
    """Round accuracies between two heights: from the coarsest list that has four, well apart."""
    kept: list[float] = []
    evenly = [[i / n for i in range(n + 1)] for n in (10, 20, 50, 100, 200, 500, 1000, 10_000)]
    for candidates in (COARSE, FINE, *evenly):
        heights = accuracy_height(candidates, n_test)
        kept, last = [], math.inf
        for tick, height in sorted(zip(candidates, heights, strict=True), reverse=True):
            if bottom <= height <= top and last - height >= (top - bottom) / 12:
                kept.append(tick)
                last = height
        if len(kept) >= 4:
            break
    return kept[::-1]


def save(figure: Figure, path: str | os.PathLike[str]) -> dict[str, Path]:
    """Write a figure as PNG (160 dpi) and as SVG, each atomically.

    Args:
        figure: the figure.
        path: where to, without a suffix.

    Returns:
        The files by their kind, "png" and "svg".

    Raises:
        RunError: a file cannot be written.
    """
    written = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata, facecolor="white")
        written[kind] = write_bytes(f"{os.fspath(path)}.{kind}", buffer.getvalue())
    return written

"""Figure: every trained network under every solver. Accuracy, and the share of samples whose class changes."""

from __future__ import annotations

import math
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet.plotting import style
from odenet.plotting.style import Results, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 0.5, 0.36  # inches
CHARACTER = 0.063  # inches of a character of small type, on the safe side
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Network = dict[str, Any]
Cell = dict[str, Any]
Table = list[list[Cell]]


def swap_matrix(results: Results) -> Figure:
    """Two tables in colour, networks down and solvers across: test accuracy above, share of flipped classes below.

    A frame marks the solver that a network was trained with. A hatched cell could not be evaluated; letters lead to
    notes below. Accuracy is coloured by error rate, the share of flips by its square root.

    Args:
        results: results of a comparison; networks without swap cells are left out.

    Returns:
        The figure; its first two axes are the tables.
    """
    networks = [n for n in results["contenders"] if n["swap"]]
    columns = list({c["label"]: c for n in networks for c in n["swap"]}.values())
    table = [[_cell(n, c["label"]) for c in columns] for n in networks]
    letters = _letters(table)
    width = max(7.0, 2.1 + CELL[0] * len(columns))
    notes = _footnotes(table, letters, int((width - 0.3) / CHARACTER))
    panel = CELL[1] * len(networks) + (1.35 if _slanted(columns) else 0.75)
    foot = 0.16 * (1 + notes.count("\n")) + 0.05
    figure = style.new_figure(width, 2 * panel + foot)
    places: Any = figure.subfigures(3, 1, height_ratios=(panel, panel, foot))
    upper, lower, bottom = places
    accuracy, flips = _values(table, "accuracy"), _values(table, "flips")
    height = style.accuracy_height(accuracy, results["data"]["n_test"])
    for place, values, shade, title, colors in (
        (upper, accuracy, height, "Test accuracy (%)", "Blues"),
        (
            lower,
            flips,
            np.sqrt(flips),
            "Test samples whose class is not the one under the training solver (%)",
            "Oranges",
        ),
    ):
        axes = place.subplots()
        axes.set_title(title, loc="left", fontsize=style.TITLE, color=style.INK, pad=6)
        _paint(axes, values, shade, colors)
        _head(axes, columns)
        axes.set_yticks(range(len(networks)), [plain(n["label"], 27) for n in networks], linespacing=0.95)
        axes.tick_params(labelsize=style.FONT, axis="y", length=0)
        _mark(axes, table, letters)
    bottom.text(0.012, 0.98, notes, fontsize=style.SMALL, color=style.MUTED, va="top", linespacing=1.35)
    return figure


def _paint(axes: Axes, values: np.ndarray, shade: np.ndarray, colors: str) -> None:
    """The cells: coloured by `shade`, with the value written in black or white, whichever is read more easily."""
    from matplotlib import colormaps

    colormap = colormaps[colors]
    known = np.isfinite(values)
    low, high = (shade[known].min(), shade[known].max()) if known.any() else (0.0, 1.0)
    share = (shade - low) / (high - low) if high > low else np.full_like(shade, 0.5)
    rgba = colormap(0.03 + 0.57 * np.where(known, share, 0.0))  # light enough for black numbers
    rgba[~known] = (1, 1, 1, 1)
    axes.imshow(rgba, aspect="auto", interpolation="nearest")
    for row, column in np.ndindex(*values.shape):
        if known[row, column]:
            text = f"{100 * values[row, column]:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=_ink(rgba[row, column]))
    rows, cols = values.shape
    axes.vlines(np.arange(cols + 1) - 0.5, -0.5, rows - 0.5, color="white", linewidth=1.2)
    axes.hlines(np.arange(rows + 1) - 0.5, -0.5, cols - 0.5, color="white", linewidth=1.2)
    axes.set_xlim(-0.5, cols - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.spines[:].set_visible(False)


def _head(axes: Axes, columns: list[Cell]) -> None:
    """Below the cells: steps or tolerance of each column, then a rule over the solver's name."""
    axes.set_xticks(range(len(columns)), [plain(_setting(c)) for c in columns])
    axes.tick_params(axis="x", length=0, labelsize=style.SMALL, labelcolor=style.INK, pad=2)
    below = axes.get_xaxis_transform()
    inches = CELL[1] * (axes.get_ylim()[0] - axes.get_ylim()[1])
    rule, name = -0.23 / inches, -0.27 / inches
    slant: dict[str, Any] = {"ha": "center"}
    if _slanted(columns):
        slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    at = 0
    for solver, group in groupby(columns, key=lambda c: c["solver"]):
        n = len(list(group))
        ends = [at - 0.4, at + n - 0.6]
        axes.plot(ends, [rule, rule], color=style.FRAME, linewidth=0.8, transform=below, clip_on=False)
        middle = at + (n - 1) / 2
        axes.text(middle, name, _method(solver), transform=below, va="top", fontsize=style.SMALL, **slant)
        at += n


def _mark(axes: Axes, table: Table, letters: dict[str, str]) -> None:
    """Frames around training solvers, hatches over cells without a value, letters of notes."""
    from matplotlib.patches import Rectangle

    for row, cells in enumerate(table):
        for column, cell in enumerate(cells):
            corner = (column - 0.5, row - 0.5)
            if not math.isfinite(number(cell["accuracy"])):
                hatch = {"hatch": "/////", "facecolor": "none", "edgecolor": "#bdbdbd", "linewidth": 0}
                axes.add_patch(Rectangle(corner, 1, 1, label="missing", **hatch))
            if cell["trained"]:
                inner = (column - 0.46, row - 0.44)
                frame = {"facecolor": "none", "edgecolor": style.INK, "linewidth": 1.8, "label": "trained"}
                axes.add_patch(Rectangle(inner, 0.92, 0.88, zorder=3, **frame))
            letter = letters.get(_note(cell))
            if letter:
                ink = _ink(axes.images[0].get_array()[row, column])  # type: ignore[index]
                axes.text(column + 0.4, row - 0.37, letter, ha="right", va="top", fontsize=5.5, color=ink)


def _ink(background: Any) -> str:
    """White or black, whichever has the higher contrast on a colour, by its WCAG 2 relative luminance."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in map(float, background[:3])]
    return "white" if 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] < 0.179 else "black"


def _cell(network: Network, label: str) -> Cell:
    """The cell of a network in a column; an empty one if it was not tried."""
    empty = {"accuracy": None, "flips": None, "trained": False, "note": "not tried"}
    return next((c for c in network["swap"] if c["label"] == label), empty)


def _values(table: Table, key: str) -> np.ndarray:
    return np.array([[number(cell[key]) for cell in row] for row in table], dtype=float).reshape(len(table), -1)


def _note(cell: Cell) -> str:
    return " ".join(str(cell["note"] or "").split())


def _letters(table: Table) -> dict[str, str]:
    """A letter for each distinct note, in reading order."""
    notes = dict.fromkeys(note for row in table for cell in row if (note := _note(cell)))
    return {note: LETTERS[i % 26] * (1 + i // 26) for i, note in enumerate(notes)}


def _footnotes(table: Table, letters: dict[str, str], width: int) -> str:
    parts = ["Above a solver’s name: its steps, or its tolerance. Framed: the solver it was trained with."]
    if any(not math.isfinite(number(cell["accuracy"])) for row in table for cell in row):
        parts.append("Hatched: could not be evaluated.")
    short = [f"{letter}  {note}" for note, letter in letters.items() if len(note) <= 40]
    long = [f"{letter}  {note}" for note, letter in letters.items() if len(note) > 40]
    lines = textwrap.wrap(" ".join(parts), width) + textwrap.wrap("    ".join(short), width, drop_whitespace=True)
    for note in long:
        lines += textwrap.wrap(note, width, max_lines=2, placeholder=" …", subsequent_indent="    ")
    return plain_lines(lines)


def plain_lines(lines: list[str]) -> str:
    """Lines of text, with nothing in them read as mathematics."""
    return "\n".join(lines).replace("$", r"\$")


def _setting(cell: Cell) -> str:
    """What a column has beside its solver: "8" steps, or a tolerance "1e-3"."""
    if cell["steps"] is not None:
        return str(cell["steps"])
    return "" if cell["rtol"] is None else f"{cell['rtol']:.0e}".replace("e-0", "e-")


def _method(solver: str) -> str:
    return "Euler" if solver == "euler" else plain(solver, 22, 1)


def _slanted(columns: list[Cell]) -> bool:
    """Whether a solver's name is too long for its columns."""
    groups = [(solver, len(list(group))) for solver, group in groupby(columns, key=lambda c: c["solver"])]
    return any(CHARACTER * len(_method(solver)) > CELL[0] * n + 0.06 for solver, n in groups)

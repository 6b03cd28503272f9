"""Figure: hλ of a network along depth, on the stability region of its solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet.plotting import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = 241
SHADE, EDGE = "#dcebf5", "#7aa6c2"


def stability_region(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, str, Callable[[np.ndarray], np.ndarray]]],
) -> Figure:
    """Points hλ in the complex plane, coloured by depth; shaded is where a step does not amplify, |R(z)| ≤ 1.

    Args:
        panels: for each panel its title, and z: (places, n) complex, the depths of the places, the solver's name, and
            its |R|, z -> |R(z)|, or the largest of its roots.
    """
    columns = style.columns_for(len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = style.new_figure(2.6 * columns + 0.9, 3.0 * rows + 0.2)
    grid = figure.subplots(rows, columns, squeeze=False)
    points: Any = None
    for axes, (title, (z, depths, solver, size_of)) in zip(grid.flat, panels.items(), strict=False):
        style.dress(axes, title)
        flat: Any = z.reshape(-1)
        left, right = min(-3.2, 1.1 * flat.real.min()), max(1.2, 1.1 * flat.real.max())
        top = max(3.2, 1.1 * np.abs(flat.imag).max())
        re, im = np.meshgrid(np.linspace(left, right, GRID), np.linspace(-top, top, GRID))
        size = size_of(re + 1j * im)
        axes.contourf(re, im, size, levels=[0, 1], colors=[SHADE])
        axes.contour(re, im, size, levels=[1], colors=[EDGE], linewidths=0.9)
        axes.axhline(0, color=style.FRAME, linewidth=0.6, zorder=1)
        axes.axvline(0, color=style.FRAME, linewidth=0.6, zorder=1)
        color = np.repeat(np.asarray(depths), z.reshape(len(depths), -1).shape[1])
        points = axes.scatter(flat.real, flat.imag, c=color, cmap="viridis", s=9, linewidths=0, zorder=3)
        axes.set_xlim(left, right)
        axes.set_ylim(-top, top)
        axes.set_aspect("equal")
        axes.set_xlabel(f"Re hλ   (shaded: |R| ≤ 1, {solver})")
        axes.set_ylabel("Im hλ")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    if points is not None:
        bar = figure.colorbar(points, ax=list(grid.flat[: len(panels)]), shrink=0.8, pad=0.02)
        bar.set_label("depth t", fontsize=style.SMALL)
        bar.ax.tick_params(labelsize=style.SMALL)
        bar.outline.set_visible(False)  # type: ignore[union-attr]
    return figure

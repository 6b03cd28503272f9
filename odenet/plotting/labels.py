"""Names beside the lines that they belong to, moved apart where they would overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from odenet.plotting.style import SMALL, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACH = 0.018  # of the axes' width: length of the leader from a line's end to its name


@dataclass(frozen=True)
class EndLabel:
    """A name for the right-hand end of a line.

    Attributes:
        y: height of the line's end, in data coordinates.
        text: the name.
        color: its colour.
    """

    y: float
    text: str
    color: str


def label_ends(axes: Axes, labels: Sequence[EndLabel], height: float, width: int = 26) -> None:
    """Write names to the right of `axes`, each as near to its line as the others allow, with a leader to it.

    Args:
        axes: axes whose limits and scale are set.
        labels: the names; one whose height is NaN is left out.
        height: height of the axes in inches, roughly; the type size is turned into a distance with it.
        width: characters of a name in a line.
    """
    drawn = [label for label in labels if np.isfinite(number(label.y))]
    if not drawn:
        return
    to_fraction = axes.transScale + axes.transLimits
    wanted = np.array([to_fraction.transform((1.0, label.y))[1] for label in drawn])
    texts = [plain(label.text, width) for label in drawn]
    line = 1.3 * SMALL / 72 / height
    sizes = np.array([line * (1 + text.count("\n")) for text in texts])
    for label, text, y, at in zip(drawn, texts, wanted, spread(wanted, sizes), strict=True):
        leader = [1.0, 1.0 + 0.3 * REACH, 1.0 + 1.2 * REACH], [y, y, at]
        axes.plot(*leader, color=label.color, linewidth=0.6, transform=axes.transAxes, clip_on=False)
        where = {"va": "center", "ha": "left", "transform": axes.transAxes}
        axes.text(1.0 + 1.5 * REACH, float(at), text, color=label.color, fontsize=SMALL, linespacing=1.0, **where)


def spread(wanted: np.ndarray, sizes: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Centres of intervals of the given sizes that do not overlap and lie as near as possible to those wanted.

    Neighbours that overlap are joined into a block, which moves to the mean of what its members want.

    Args:
        wanted: (n,) centres.
        sizes: (n,) lengths.
        low: no interval begins below, unless they do not fit.
        high: no interval ends above, unless they do not fit.

    Returns:
        (n,) centres, in the order of `wanted`.
    """
    order = np.argsort(wanted, kind="stable")
    blocks: list[tuple[float, list[int]]] = []  # where the block begins, its members from below
    for index in order:
        members = [int(index)]
        start = float(wanted[index] - sizes[index] / 2)
        while blocks and blocks[-1][0] + _length(blocks[-1][1], sizes) > start:
            members = blocks.pop()[1] + members
            offsets = np.cumsum([0.0, *sizes[members][:-1]]) + sizes[members] / 2
            start = float(np.mean(wanted[members] - offsets))
        start = max(low, min(start, high - _length(members, sizes)))
        while blocks and blocks[-1][0] + _length(blocks[-1][1], sizes) > start + 1e-12:
            members = blocks.pop()[1] + members
            start = max(low, high - _length(members, sizes))
        blocks.append((start, members))
    centres = np.empty(len(wanted))
    for start, members in blocks:
        centres[members] = start + np.cumsum([0.0, *sizes[members][:-1]]) + sizes[members] / 2
    return centres


def _length(members: list[int], sizes: np.ndarray) -> float:
    return float(sizes[members].sum())

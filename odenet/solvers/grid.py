"""Where a walk must stop: pieces of depth, forced stops, and the grids of fixed-step solves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from odenet.errors import InputError
from odenet.solvers.stepper import Span

RESOLUTION = 1e-12


class Piece(NamedTuple):
    """A piece of depth on which F is one smooth function: between knots of the weights, and between jumps of F.

    Attributes:
        weights: index of the piece of weights.
        start: where it begins.
        end: where it ends.
    """

    weights: int
    start: float
    end: float


def pieces_of_depth(t0: float, t1: float, knots: Sequence[float], jumps: Sequence[float] = ()) -> list[Piece]:
    """The pieces from t0 to t1.

    Args:
        t0: start.
        t1: end.
        knots: interior knots of the weights, as fractions of the interval.
        jumps: times at which F is discontinuous; those at the ends or outside cut nothing.
    """
    if not knots and not jumps:
        return [Piece(0, t0, t1)]
    sign = -1.0 if t1 < t0 else 1.0
    edges = [t0, *(t0 + (t1 - t0) * knot for knot in knots), t1]
    inside = sorted({t for t in jumps if sign * t0 < sign * t < sign * t1}, key=lambda t: sign * t)
    pieces = []
    for index, (start, end) in enumerate(pairwise(edges)):
        cuts = [t for t in inside if _within(t, start, end)]
        pieces += [Piece(index, a, b) for a, b in pairwise([start, *cuts, end])]
    return pieces


def landings(pieces: Sequence[Piece], stops: Iterable[float]) -> list[list[float]]:
    """For each piece, the times at which a step has to end: the forced stops inside, and the piece's end."""
    stops = set(stops)
    found = []
    for _, start, end in pieces:
        sign = -1.0 if end < start else 1.0
        inside = [t for t in stops if _within(t, start, end)]
        found.append([*sorted(inside, key=lambda t: sign * t), end])
    return found


def _within(t: float, start: float, end: float) -> bool:
    """Whether a time lies between two others, and is not one of them to rounding."""
    close = RESOLUTION * max(abs(start), abs(end))
    return min(start, end) + close < t < max(start, end) - close


def uniform_grid(t0: float, t1: float, steps: int) -> list[float]:
    """t0, t0 + h, ..., and t1 exactly, h = (t1 - t0) / steps."""
    return [*(t0 + (t1 - t0) * (n / steps) for n in range(steps)), t1]


def stepped_grid(pieces: Sequence[Piece], stops: Iterable[float], h: float) -> list[float]:
    """Steps of size h from every landing on; the last one before the next landing may be shorter."""
    times = [pieces[0].start]
    for land in landings(pieces, stops):
        for end in land:
            start = times[-1]
            sign = -1.0 if end < start else 1.0
            steps = max(1, math.ceil(abs(end - start) / h - 1e-9))
            times += [start + sign * n * h for n in range(1, steps)] + [end]
    return times


def check_grid(grid: Sequence[float], t0: float, t1: float) -> list[float]:
    """A grid that the user gave, ending on t0 and t1 exactly.

    Raises:
        InputError: it does not run from t0 to t1, or does not run one way.
    """
    sign = -1.0 if t1 < t0 else 1.0
    close = RESOLUTION + 1e-6 * abs(t1 - t0)
    if len(grid) < 2 or abs(grid[0] - t0) > close or abs(grid[-1] - t1) > close:
        raise InputError(f"grid must run from t0={t0:g} to t1={t1:g}, got {_shown(grid)}")
    grid = [t0, *grid[1:-1], t1]
    if any(sign * b <= sign * a for a, b in pairwise(grid)):
        raise InputError(f"grid must run from t0={t0:g} to t1={t1:g} without turning back, got {_shown(grid)}")
    return grid


def with_knots(grid: Sequence[float], knots: Sequence[float]) -> list[float]:
    """A grid with the knots of weights over depth, given as fractions of it, among its points."""
    t0, t1 = grid[0], grid[-1]
    close = RESOLUTION * max(abs(t0), abs(t1))
    at = [t0 + (t1 - t0) * knot for knot in knots]
    new = [t for t in at if all(abs(t - other) > close for other in grid)]
    return sorted([*grid, *new], reverse=t1 < t0)


@lru_cache(maxsize=32)  # a block walks the same grid in every forward pass
def spans_of(
    times: tuple[float, ...], pieces: tuple[Piece, ...], stops: tuple[float, ...], h: float | None
) -> tuple[Span, ...]:
    """The steps of a grid, each on its piece.

    Args:
        times: ends of the steps, t0 first.
        pieces: of depth.
        stops: forced stops.
        h: the signed size of all steps, or None where they differ.

    Raises:
        InputError: a step would cross a knot, a jump or a forced stop.
    """
    spans: list[Span] = []
    at, close = 0, RESOLUTION * max(abs(times[0]), abs(times[-1]))
    for number, land in enumerate(landings(pieces, stops)):
        for end in land:
            start = spans[-1].t_next if spans else times[0]
            while not spans or spans[-1].t_next != end:
                at += 1
                t = times[at] if at < len(times) else times[-1]
                if abs(t - end) <= close:
                    t = end
                elif (t - end) * (end - start) > 0:
                    _refuse_crossing(end, pieces, times, h)
                before = spans[-1].t_next if spans else times[0]
                spans.append(Span(number, before, t, t - before if h is None else h))
    return tuple(spans)


def _refuse_crossing(t: float, pieces: Sequence[Piece], times: Sequence[float], h: float | None) -> None:
    t0, t1 = times[0], times[-1]
    count = 1 + max(piece.weights for piece in pieces)
    knot = any(a.end == t and a.weights != b.weights for a, b in pairwise(pieces))
    given = "grid" if h is None else f"steps={len(times) - 1}"
    if knot:
        advice = (
            f"take a multiple of {count} steps, or keep every k-th layer first"
            if h is not None
            else "put the knot into the grid"
        )
        raise InputError(
            f"{given} would step across a knot of the weights over depth (at {(t - t0) / (t1 - t0):.6g} of the depth); "
            + advice
        )
    raise InputError(f"{given} would step across t={t:g}, a stop or a jump; give step_size=h or a grid that holds it")


def _shown(grid: Sequence[float]) -> str:
    shown = ", ".join(f"{t:g}" for t in grid[:3])
    return f"[{shown}, ..., {grid[-1]:g}]" if len(grid) > 4 else f"[{', '.join(f'{t:g}' for t in grid)}]"

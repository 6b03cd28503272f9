"""A solve by someone else's steps, piece of depth after piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from odenet.errors import SolveError
from odenet.solvers.problem import Problem
from odenet.solvers.solution import Interpolant, Solution

SolvePiece = Callable[[int, list[float], Tensor], Sequence[Tensor]]


def integrate_pieces(
    problem: Problem, solve_piece: SolvePiece, interpolants: list[Interpolant] | None = None
) -> Solution:
    """Solve `problem` piece by piece.

    Args:
        problem: what to solve.
        solve_piece: from the index of a piece, its start, its outputs and its end (each time once), and the state at
            its start, the states at those times.
        interpolants: filled by `solve_piece`, if the solution is to be callable.

    Returns:
        The states at `problem.ts`; with `on_failure="status"` and a solve that broke down, those of the pieces that
        were walked to their ends.

    Raises:
        SolveError: the solve broke down.
    """
    states: list[Tensor] = []
    x, t, failure = problem.x0, problem.t0, None
    with problem.field.consistency.forward():
        try:
            for piece, (start, end) in enumerate(problem.pieces()):
                due = [t for t in problem.ts[len(states) :] if problem.direction * (t - end) <= 0]
                stops = list(dict.fromkeys([start, *due, end]))
                if x.numel() == 0 or start == end:
                    at = dict.fromkeys(stops, x)
                else:
                    at = dict(zip(stops, solve_piece(piece, stops, x), strict=True))
                x, t = at[end], end
                states += [at[t] for t in due]
        except SolveError as error:
            if problem.scheme.on_failure == "raise":
                raise
            failure = error
    times = problem.ts
    if failure is not None:
        times = times[: len(states)]
        if not times or times[-1] != t:
            times, states = [*times, t], [*states, x]
    return Solution(states, times, problem.stats, interpolants, failure)

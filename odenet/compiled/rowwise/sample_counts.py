"""A row-wise solve of samples with their own steps is counted as the eager loop counts it: in its rounds every sample
that is on its way tries one step, and F is called once for those on one piece of weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from odenet.compiled.rowwise.sample_record import FORCED, TRIES, Record
from odenet.compiled.rowwise.source import dense_rows
from odenet.solvers.per_sample import SampleProblem
from odenet.solvers.tableau import Tableau


class Starts(NamedTuple):
    """What follows accepted steps, masks over a record; no step follows the last one of a sample.

    Attributes:
        rounds: of each the round, and the piece of weights on which it was made, as one number.
        next: of each the round, and the piece of weights on which the sample goes on, as one number.
        fresh: whether a piece of depth begins behind it.
        more: whether another step of the piece follows.
    """

    rounds: Tensor
    next: Tensor
    fresh: Tensor
    more: Tensor

    @classmethod
    def of(cls, problem: SampleProblem, record: Record) -> Starts:
        """Those of a record."""
        table, pieces, n = problem.field.timetable, problem.weights.pieces, record.count
        whose, _, tried, segment = record.steps[:, :n]
        ends, segments = record.times[1, :n], table.end.shape[1]
        if segments == 1:
            more = ends != problem.t1[whose]
            return cls(tried, tried, torch.zeros_like(more), more)
        landed = ends == table.end[whose, segment]
        after = segment + landed
        on, after = after < table.count[whose], after.clamp(max=segments - 1)
        fresh = landed & on & table.fresh[whose, after]
        rounds, following = (tried * pieces + table.weights[whose, at] for at in (segment, after))
        return cls(rounds, following, fresh, on & ~fresh)


def count(
    problem: SampleProblem, tableau: Tableau, at: Tensor, record: Record, tries_before: Sequence[Tensor], padded: int
) -> bool:
    """Count a solve as the eager loop does; False, with nothing counted, if it took more than it may.

    Args:
        problem: what was solved.
        tableau: by which method.
        at: numbers of each sample where it ended.
        record: the accepted steps.
        tries_before: tries of each sample before each piece of weights.
        padded: evaluations of F for lanes, empty ones included.
    """
    scheme, stats, each, steps = problem.scheme, problem.stats, problem.stats.samples, record.count
    assert each is not None
    tries, accepted, forced = at[TRIES : FORCED + 1].long()
    rounds = _rounds([*(part.long() for part in tries_before), tries])
    moving = problem.field.timetable.count > 0
    if scheme.adaptive:
        starts, a_try = 2 if scheme.first_step is None else 1, tableau.stages - 1
        nfe, calls = starts * moving + a_try * tries, starts * (rounds > 0) + a_try * rounds
        if not tableau.fsal:  # F where steps begin that do not follow a rejected one
            begun = Starts.of(problem, record)
            nfe = nfe + accepted - moving.long()
            calls += _different(begun.next[begun.more]) + _different(begun.next[begun.fresh])
        elif problem.field.timetable.end.shape[1] > 1:
            begun, whose = Starts.of(problem, record), record.steps[0, :steps]
            nfe = nfe + torch.bincount(whose[begun.fresh], minlength=len(nfe))
            calls += _different(begun.next[begun.fresh])
    else:
        nfe, calls = tableau.used * tries, tableau.used * rounds
        inner = record.inner[:steps].bool()
        if len(tries_before) > 1 or problem.field.timetable.end.shape[1] > 1 or len(inner):
            begun, whose = Starts.of(problem, record), record.steps[0, :steps]
            if not (len(inner) and len(dense_rows(tableau)) > tableau.used):
                inner = torch.zeros(steps, dtype=torch.bool)
            more = begun.more & ~inner  # F at the ends of the others is known
            nfe = nfe + torch.bincount(whose[inner & ~begun.more], minlength=len(nfe))
            calls += (rounds > 0) - rounds + _different(begun.rounds[inner])
            calls += _different(begun.next[more]) + _different(begun.next[begun.fresh])
    if scheme.max_nfe is not None and bool((nfe > scheme.max_nfe).any()):
        return False
    each.nfe.copy_(nfe)
    each.accepted, each.rejected, each.forced = accepted, tries - accepted, forced
    each.history.append((record.steps[0, :steps], record.times[2, :steps].abs()))
    each.evaluated, each.padded = int(nfe.sum()), padded
    stats.nfe += calls
    stats.accepted, stats.rejected, stats.forced = (int(part.sum()) for part in (accepted, each.rejected, forced))
    return True


def count_back(problem: SampleProblem, tableau: Tableau, accepted: Tensor, record: Record, inner: Tensor) -> None:
    """Count a way back as the eager one does, which redoes the accepted steps of a round together.

    Args:
        problem: what was solved.
        tableau: by which method.
        accepted: steps of each sample.
        record: the steps.
        inner: for each whether there are outputs inside, or none.
    """
    stats, each, (whose, _, tried, _) = problem.stats, problem.stats.samples, record.steps[:, : record.count]
    assert each is not None
    each.nfe_backward += tableau.used * accepted
    rounds = Starts.of(problem, record).rounds
    calls = tableau.used * _different(rounds)
    if len(inner) and len(dense_rows(tableau)) > tableau.used:  # F at the ends of those steps
        each.nfe_backward += torch.bincount(whose[inner], minlength=len(accepted))
        calls += _different(rounds[inner])
    stats.nfe_backward, stats.vjps = stats.nfe_backward + calls, stats.vjps + calls
    stats.steps_backward += _different(tried)


def _rounds(tries: Sequence[Tensor]) -> int:
    """Rounds of a solve, each as often as there are pieces of weights on which samples try a step in it.

    Args:
        tries: of each sample, before each piece and at the end.
    """
    most, found = int(tries[-1].max()), 0
    if len(tries) == 2:
        return most
    for before, after in pairwise(tries):
        change = torch.zeros(most + 1, dtype=torch.long)
        ones = torch.ones_like(before)
        change.index_add_(0, before, ones).index_add_(0, after, -ones)
        found += int((change.cumsum(0) > 0).sum())
    return found


def _different(numbers: Tensor) -> int:
    return int((torch.bincount(numbers) > 0).sum())

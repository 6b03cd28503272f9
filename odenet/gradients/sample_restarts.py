"""Events that change the states of samples: each goes on from its own, as one walk after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from odenet.errors import StepUnderflowError
from odenet.gradients.sample_times import moments, moved
from odenet.solvers.events import RESOLUTION, STOPS
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.per_sample.hit import SampleHit
from odenet.solvers.solution import Occurrences


class Restarts:
    """What was asked for and what happened, gathered from one walk after the other.

    In each the samples go on that an event of the walk before has changed, from their own states at their own times.

    Args:
        problem: the first walk.
    """

    def __init__(self, problem: SampleProblem):
        self.problem = problem
        self.found: list[list[Occurrences]] = [[] for _ in problem.events]
        self.walks: list[SampleSolution] = []
        self.stops = torch.full((STOPS, len(problem.x0)), torch.nan, dtype=torch.float64)

    def add(self, walk: SampleSolution) -> SampleProblem | None:
        """Take what a walk brought; the walk that goes on, unless it was the last one."""
        self.walks.append(walk)
        self._take_over(walk)
        onwards: list[tuple[SampleHit, Tensor, Tensor]] = []
        for number, event in enumerate(self.problem.events):
            hits = [(hit, place) for hit, place in walk.hits_found if hit.event == number]
            found = moments(self.problem, event, hits, walk.values)
            self.found[number].append(found)
            for n, (hit, place) in enumerate(hits):
                if self.problem.goes_on(hit) and not self._accumulate(walk, hit, place):
                    onwards.append((hit, found.ts[n], found.ys[n]))
        if not onwards:
            return None
        onwards.sort(key=lambda entry: entry[0].sample)
        hits = [hit for hit, _, _ in onwards]
        ts, x = torch.stack([t for _, t, _ in onwards]), torch.stack([x for _, _, x in onwards])
        changed = self._changed(hits, ts, x)
        rest = self.problem.after(hits, changed, walk.outputs.next)
        if ts.requires_grad:
            samples = rest.walking
            start = moved(rest, samples, rest.begin[samples], changed, ts, -1, rest.segments[samples])
            rest.x0 = rest.x0.index_copy(0, samples.to(x.device), start)
        return rest

    def solution(self) -> tuple[SampleSolution, list[Occurrences]]:
        """The whole answer, and what happened to each event."""
        first, *others = self.walks
        first.join(others)
        return first, [_joined(found) for found in self.found]

    def _changed(self, hits: list[SampleHit], ts: Tensor, x: Tensor) -> Tensor:
        """The states from which samples go on, by the updates of their events."""
        field, changed = self.problem.field, torch.zeros_like(x)
        for number, event in enumerate(self.problem.events):
            rows = torch.tensor([n for n, hit in enumerate(hits) if hit.event == number], device=x.device)
            if not len(rows):
                continue
            samples = torch.tensor([hits[n].sample for n in rows.tolist()], device=x.device)
            time = ts.index_select(0, rows).to(field.time_dtype)
            part = event.changed(time, x.index_select(0, rows), field.rows_of(samples))
            changed = changed.index_copy(0, rows, part)
        return changed

    def _take_over(self, walk: SampleSolution) -> None:
        """The first walk's words on the samples of a later one are out of date."""
        first = self.walks[0]
        for sample in walk.problem.walking.tolist() if walk is not first else ():
            first.status[sample], first.ended[sample] = walk.status[sample], walk.ended[sample]
            if sample in walk.errors:
                first.errors[sample] = walk.errors[sample]

    def _accumulate(self, walk: SampleSolution, hit: SampleHit, place: int) -> bool:
        """Whether a sample stops again and again at (almost) the same time, as a ball does that comes to rest.

        Raises:
            StepUnderflowError: it does, and `on_failure="raise"`.
        """
        problem, first, sample = self.problem, self.walks[0], hit.sample
        stops = self.stops[:, sample] = torch.cat([self.stops[1:, sample], torch.tensor([hit.t]).double()])
        close = RESOLUTION * abs(float(problem.t1[sample] - problem.t0[sample]))
        if not bool((stops[-1] - stops[0]).abs() < close):
            return False
        assert problem.stats.samples is not None
        error = StepUnderflowError(
            f"{STOPS} events that change the state follow each other too closely to be told apart",
            t=hit.t,
            h=abs(float(stops[-1] - stops[-2])),
            nfe=int(problem.stats.samples.nfe[sample]),
            sample=sample,
            advice="let the update stop the motion, or end the solve earlier",
        )
        if problem.scheme.on_failure == "raise":
            raise error
        first.errors[sample], first.status[sample], first.ended[sample] = error, error.status, hit.t
        walk.outputs.end_at(place, sample)
        return True


def _joined(found: list[Occurrences]) -> Occurrences:
    if len(found) == 1:
        return found[0]
    samples = [part.samples for part in found if part.samples is not None]
    ts, ys, elements = (torch.cat([getattr(part, name) for part in found]) for name in ("ts", "ys", "elements"))
    return Occurrences(ts, ys, elements, torch.cat(samples))

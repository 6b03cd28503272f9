"""Events of each sample: where a function of its time and state crosses zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.events import JUST_AFTER, Event, check_known, root
from odenet.solvers.per_sample.control import on_host
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.hit import SampleHit
from odenet.solvers.per_sample.outputs import Interior, Step
from odenet.solvers.stepper import Stepper


def event_value(event: Event, f: Rows, t: Tensor, x: Tensor) -> Tensor:
    """An event's function for some samples, (rows, elements).

    Raises:
        InputError: it is not a real tensor with the samples first.
    """
    g = event.function(f.time(t), x, *f.args)
    if not isinstance(g, Tensor) or g.dtype.is_complex or g.dtype == torch.bool or g.shape[:1] != x.shape[:1]:
        got = f"{g.dtype} {tuple(g.shape)}" if isinstance(g, Tensor) else type(g).__name__
        raise InputError(
            f"with per_sample=True an event's function must return a real tensor with the samples first, "
            f"{tuple(x.shape[:1])} or {(x.shape[0], '...')}, got {got}"
        )
    return g.reshape(x.shape[0], -1)


class SampleWatcher:
    """Looks for events round by round.

    Args:
        events: what to look for.
        starts: the events at which samples begin anew.
    """

    def __init__(self, events: Sequence[Event], starts: Sequence[SampleHit]):
        self.events, self.starts = events, starts
        self.before: list[Tensor] = []

    def begin(self, f: Rows, t: Tensor, x: Tensor, batch: int) -> None:
        """Look at the initial states of the samples that have a way to go."""
        for event in self.events:
            g = self._value(event, f, t, x)
            before = torch.full((batch, g.shape[1]), torch.nan, dtype=torch.float64)
            before[f.samples] = g
            self.before.append(before)
        for hit in self.starts:
            self.before[hit.event][hit.sample, hit.element] = 0

    def hits(self, stepper: Stepper, step: Step) -> list[SampleHit]:
        """The events in accepted steps, for each sample in order of time and up to its first terminal one."""
        (t, t_next, *_), samples = step.spans.host, step.f.samples
        found: list[SampleHit] = []
        everywhere: Interior | None = None

        def inside(at: Tensor) -> Tensor:
            nonlocal everywhere
            everywhere = everywhere or Interior(stepper, step, torch.arange(len(samples)))
            return self._value(event, step.f, at, everywhere.at(everywhere.rows, at))

        for number, event in enumerate(self.events):
            left, g, after = t, self.before[number][samples], t
            for fraction in JUST_AFTER:
                if bool((g == 0).any()):
                    after = t + fraction * (t_next - t) / event.checks
                    g = torch.where(g == 0, inside(after), g)
            unsigned = self.before[number][samples] == 0
            for part in range(1, event.checks + 1):
                last = part == event.checks
                right = t_next if last else t + (t_next - t) * (part / event.checks)
                g_right = self._value(event, step.f, t_next, step.trial.x_next) if last else inside(right)
                check_known(g_right, right, step.trial.x_next, samples)
                for row, element in _crossings(g, g_right, event.direction).tolist():
                    start = after if part == 1 and bool(unsigned[row, element]) else left
                    ends = [(float(at[row]), float(v[row, element])) for at, v in ((start, g), (right, g_right))]
                    at = root(self._along(event, stepper, step, row, element), ends[0], ends[1])
                    sample = int(samples[row])
                    found.append(SampleHit(at, number, element, row, sample, int(step.f.segments[row])))
                left, g = right, g_right
            self.before[number][samples] = g
        if everywhere is not None:
            everywhere.hand_over(step)
        return self._until_terminal(sorted(found, key=lambda hit: (hit.row, abs(hit.t - float(t[hit.row])))))

    def _until_terminal(self, found: Sequence[SampleHit]) -> list[SampleHit]:
        kept, ended = [], set()
        for hit in found:
            if hit.row not in ended:
                kept.append(hit)
            if self.events[hit.event].terminal:
                ended.add(hit.row)
        return kept

    def _along(self, event: Event, stepper: Stepper, step: Step, row: int, element: int) -> Callable[[float], float]:
        """An element of an event's value for one sample, as a function of the time within its step."""
        rows = torch.tensor([row])
        interior, f = Interior(stepper, step, rows), step.f.select(rows)
        interior.at(rows, step.spans.host[0][rows])  # what it needs of F is evaluated here, on the tape if there is one

        @torch.no_grad()
        def along(s: float) -> float:
            at = torch.tensor([s], dtype=torch.float64)
            return float(self._value(event, f, at, interior.at(rows, at))[0, element])

        return along

    @staticmethod
    @torch.no_grad()
    def _value(event: Event, f: Rows, t: Tensor, x: Tensor) -> Tensor:
        return on_host(event_value(event, f, t, x.detach()))


def _crossings(before: Tensor, after: Tensor, direction: int) -> Tensor:
    up, down = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
    return (up if direction > 0 else down if direction < 0 else up | down).nonzero()

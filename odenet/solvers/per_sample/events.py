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

    Attributes:
        interior: of the steps in which the last events were found, or None.
    """

    def __init__(self, events: Sequence[Event], starts: Sequence[SampleHit]):
        self.events, self.starts = events, starts
        self.interior: Interior | None = None
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
        crossings: list[tuple[int, int, int, tuple[float, float], tuple[float, float]]] = []
        everywhere: Interior | None = None

        def inside(at: Tensor) -> Tensor:
            nonlocal everywhere
            everywhere = everywhere or Interior(stepper, step, torch.arange(len(samples)))
            return self._value(event, step.f, at, everywhere.at(everywhere.rows, at))

        for number, event in enumerate(self.events):
            left, g, after = t, self.before[number][samples], t
            for fraction in JUST_AFTER:
                zero = (g == 0).any(1).nonzero()[:, 0]
                if len(zero):
                    after = t + fraction * (t_next - t) / event.checks
                    few = Interior(stepper, step, zero)
                    x = few.at(zero, after[zero])
                    few.hand_over(step)
                    g_after = g.index_copy(0, zero, self._value(event, step.f.select(zero), after[zero], x))
                    g = torch.where(g == 0, g_after, g)
            unsigned = self.before[number][samples] == 0
            for part in range(1, event.checks + 1):
                last = part == event.checks
                right = t_next if last else t + (t_next - t) * (part / event.checks)
                g_right = self._value(event, step.f, t_next, step.trial.x_next) if last else inside(right)
                check_known(g_right, right, step.trial.x_next, samples)
                for row, element in _crossings(g, g_right, event.direction).tolist():
                    start = after if part == 1 and bool(unsigned[row, element]) else left
                    ends = [(float(at[row]), float(v[row, element])) for at, v in ((start, g), (right, g_right))]
                    crossings.append((number, element, row, ends[0], ends[1]))
                left, g = right, g_right
            self.before[number][samples] = g
        if everywhere is not None:
            everywhere.hand_over(step)
        within = sorted({row for _, _, row, _, end in crossings if end[1] != 0 or end[0] != float(t_next[row])})
        self.interior = everywhere
        if within and everywhere is None:
            rows = torch.tensor(within)
            self.interior = Interior(stepper, step, rows)
            self.interior.at(rows, t[rows])  # what it needs of F is evaluated here, on the tape if there is one
        found: list[SampleHit] = []
        for number, element, row, begin, end in crossings:
            at = root(self._along(self.events[number], step, row, element), begin, end)
            found.append(SampleHit(at, number, element, row, int(samples[row]), int(step.f.segments[row])))
        return self._until_terminal(sorted(found, key=lambda hit: (hit.row, abs(hit.t - float(t[hit.row])))))

    def _until_terminal(self, found: Sequence[SampleHit]) -> list[SampleHit]:
        kept, ended = [], set()
        for hit in found:
            if hit.row not in ended:
                kept.append(hit)
            if self.events[hit.event].terminal:
                ended.add(hit.row)
        return kept

    def _along(self, event: Event, step: Step, row: int, element: int) -> Callable[[float], float]:
        """An element of an event's value for one sample, as a function of the time within its step."""
        rows = torch.tensor([row])
        interior, f = self.interior, step.f.select(rows)

        @torch.no_grad()
        def along(s: float) -> float:
            assert interior is not None
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

"""Events: where a function of time and state crosses zero along a solution."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from odenet.errors import InputError

if TYPE_CHECKING:
    from odenet.solvers.stepper import Evaluate, Stepper, Trial

DIRECTIONS = (-1, 0, 1)
JUST_AFTER = (1e-9, 1e-6, 1e-3)
STOPS, RESOLUTION = 4, 1e-8  # so many events that change the state within this part of the interval are too many


@dataclass(frozen=True)
class Event:
    """g(t, x, *args) = 0 along the solution.

    Args:
        function: g(t, x, *args), t a 0-d tensor; a real tensor of any shape, each element an event of its own.
        terminal: whether the solve ends there.
        direction: 1 for crossings from below only, -1 from above only, 0 for both.
        update: x⁺ = update(t, x), or update(t, x, *args) if it takes more than two arguments: the state from which a
            terminal event's solve goes on instead of ending; of x's shape, differentiable.
        checks: how many equal parts of a step are looked at for a change of sign; 1 looks at its ends.

    Raises:
        InputError: an argument that cannot be used.
    """

    function: Callable[..., Tensor]
    terminal: bool = True
    direction: int = 0
    update: Callable[..., Any] | None = None
    checks: int = 1

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"an event must be a function g(t, x), got {self.function!r}")
        if self.direction not in DIRECTIONS:
            raise InputError(f"the direction of an event must be one of -1, 0 and 1, got {self.direction!r}")
        if self.update is not None and not (callable(self.update) and self.terminal):
            raise InputError("update must be a function of a terminal event's time and state")
        if not isinstance(self.checks, int) or isinstance(self.checks, bool) or self.checks < 1:
            raise InputError(f"checks must be a positive integer, got {self.checks!r}")

    def changed(self, t: Tensor, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        """The state from which the solve goes on.

        Args:
            t: time of the event.
            x: state there.
            args: those of F, handed on if the update takes them.

        Raises:
            InputError: the update does not keep x's shape or dtype.
        """
        assert self.update is not None
        changed = self.update(t, x, *(args if takes_args(self.update) else ()))
        if not isinstance(changed, Tensor) or changed.shape != x.shape or changed.dtype != x.dtype:
            got = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise InputError(f"an event's update must return a state of {x.dtype} {tuple(x.shape)}, but returned {got}")
        return changed


def takes_args(update: Callable[..., Any]) -> bool:
    """Whether an update wants more than time and state."""
    try:
        parameters = inspect.signature(update).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) > 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def events_of(given: Any) -> list[Event]:
    """Events from what a user gives as `event=`: an event, a function, or several.

    A function counts as terminal unless its attribute `terminal` says otherwise; `direction` is read likewise.
    """
    if given is None:
        return []
    several = given if isinstance(given, Sequence) else [given]
    return [
        entry
        if isinstance(entry, Event)
        else Event(entry, bool(getattr(entry, "terminal", True)), int(getattr(entry, "direction", 0)))
        for entry in several
    ]


class Hit(NamedTuple):
    """An event that happened.

    Attributes:
        t: when.
        event: index of the event.
        element: index into the flattened value of its function.
    """

    t: float
    event: int
    element: int


class Watcher:
    """Looks for events step by step.

    Args:
        events: what to look for.
        value: evaluates an event's function at a host time and state, flattened, without a graph.
        start: the hit from which the walk begins anew, or None.
    """

    def __init__(self, events: Sequence[Event], value: Callable[[Event, float, Tensor], Tensor], start: Hit | None):
        self.events, self.value, self.start = events, value, start
        self.before: list[Tensor] | None = None

    def hits(self, stepper: Stepper, f: Evaluate, trial: Trial) -> list[Hit]:
        """The events in an accepted step, in order of time, up to the first terminal one."""
        t, t_next = trial.span.t, trial.span.t_next
        if self.before is None:
            self.before = [self.value(event, t, trial.x) for event in self.events]
            if self.start is not None:
                self.before[self.start.event][self.start.element] = 0
        found: list[Hit] = []
        for number, event in enumerate(self.events):
            inside = partial(self._inside, event, stepper, f, trial)
            left, g = t, self.before[number]
            unsigned, after = g == 0, t
            for fraction in JUST_AFTER:
                if bool((g == 0).any()):
                    after = t + fraction * (t_next - t) / event.checks
                    g = torch.where(g == 0, inside(after), g)
            for part in range(1, event.checks + 1):
                right = t_next if part == event.checks else t + (t_next - t) * part / event.checks
                g_right = self.value(event, right, trial.x_next) if right == t_next else inside(right)
                check_known(g_right, right, trial.x_next)
                for element in _crossings(g, g_right, event.direction):
                    start = after if left == t and bool(unsigned[element]) else left
                    along = lambda s, e=element, inside=inside: float(inside(s)[e])  # noqa: E731
                    at = root(along, (start, float(g[element])), (right, float(g_right[element])))
                    found.append(Hit(at, number, element))
                left, g = right, g_right
            self.before[number] = g
        found.sort(key=lambda hit: abs(hit.t - t))
        last = next((i for i, hit in enumerate(found) if self.events[hit.event].terminal), len(found))
        return found[: last + 1]

    def _inside(self, event: Event, stepper: Stepper, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """An event's value inside a step, by dense output."""
        stepper.interpolate(f, trial, trial.span.t)  # what it needs of F is evaluated here, on the tape if there is one
        with torch.no_grad():
            return self.value(event, t, stepper.interpolate(f, trial, t))


def check_known(g: Tensor, t: Any, x: Tensor, samples: Tensor | None = None) -> None:
    """Raise `InputError` if an event's value is NaN where the state is finite: a change of its sign would be missed.

    Args:
        g: the values, flattened, or (rows, elements) where each sample has its own time.
        t: the time, or those of the samples.
        x: a state near there.
        samples: whose rows they are.
    """
    if not bool(g.isnan().any()) or not bool(x.isfinite().all()):
        return
    where = f"t={t:g}" if samples is None else ""
    if samples is not None:
        row = int(g.isnan().any(1).nonzero()[0])
        where = f"t={float(t[row]):g} for sample {int(samples[row])}"
    raise InputError(f"an event's function returned NaN at {where}, and its sign must be known; let it be real there")


def root(along: Callable[[float], float], left: tuple[float, float], right: tuple[float, float]) -> float:
    """The time between two points (t, value) of opposite sign at which a function is zero, to its rounding.

    Args:
        along: the function of the time between them.
        left: the point where a step, or a part of it, begins.
        right: the point where it ends.
    """
    from scipy.optimize import brentq

    if right[1] == 0:
        return right[0]
    known = dict([left, right])

    def g(s: float) -> float:
        return known[s] if s in known else along(s)

    at: Any = brentq(g, left[0], right[0], xtol=1e-300)
    return float(at)


def _crossings(before: Tensor, after: Tensor, direction: int) -> Iterable[int]:
    up, down = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
    crossed = up if direction > 0 else down if direction < 0 else up | down
    return crossed.nonzero().flatten().tolist() if bool(crossed.any()) else []

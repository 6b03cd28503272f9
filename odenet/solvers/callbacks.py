"""Functions to be called with every step that is tried, accepted or rejected."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from odenet.solvers.stepper import Evaluate, Span, Stepper, Trial

Callback = Callable[[float, Any, float], Any]


def ignore(t: float, x: Any, h: float) -> None:
    """The callback that does nothing."""


class Callbacks:
    """What to call along a walk, each with the start of the step, the state there, and the size of the step, positive.

    What became of a step is known when the next one is tried, and told then.

    Args:
        step: before a step is tried.
        accept: after it was accepted.
        reject: after it was rejected.
    """

    def __init__(self, step: Callback = ignore, accept: Callback = ignore, reject: Callback = ignore):
        self.step, self.accept, self.reject = step, accept, reject
        self._last: tuple[Span, Tensor] | None = None

    def watch(self, stepper: Stepper) -> Stepper:
        """A stepper that tells of its steps; all else is that of `stepper`."""
        watched = copy.copy(stepper)

        def step(f: Evaluate, span: Span, x: Tensor, *rest: Any, **more: Any) -> Trial:
            self.settle(span.t)
            self.step(span.t, x, abs(span.h))
            self._last = span, x
            return stepper.step(f, span, x, *rest, **more)

        watched.__dict__["step"] = step
        return watched

    def of(self, show: Callable[[Tensor], Any]) -> Callbacks:
        """Callbacks for states that are shown to these ones in another form."""

        def shown(callback: Callback) -> Callback:
            return lambda t, x, h: callback(t, show(x), h)

        return Callbacks(*(c if c is ignore else shown(c) for c in (self.step, self.accept, self.reject)))

    def settle(self, t: float | None = None) -> None:
        """Tell what became of the last step: the walk goes on from t, or has ended (None)."""
        if self._last is None:
            return
        (span, x), self._last = self._last, None
        (self.accept if t in (None, span.t_next) else self.reject)(span.t, x, abs(span.h))

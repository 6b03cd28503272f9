"""What a method is to the loop: something that takes one step, estimates its error, and interpolates inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from odenet.solvers.problem import Problem

Evaluate = Callable[[Any, Tensor], Tensor]


class Span(NamedTuple):
    """Where a step goes: from t to t_next on one piece of depth. h = t_next - t, or what a uniform grid calls h."""

    piece: int
    t: float
    t_next: float
    h: float

    def at(self, c: float) -> float:
        """t + c h, and exactly t_next at c = 1."""
        return self.t_next if c == 1 else self.t + c * self.h

    def fraction(self, t: float) -> float:
        """Where a time lies in the step, in units of h from its start."""
        return (t - self.t) / self.h

    def reversed(self) -> Span:
        """The same step from its end to its start."""
        return Span(self.piece, self.t_next, self.t, -self.h)


class Memory(NamedTuple):
    """What a method carries from one step to the next beside the state; part of the state for every gradient method.

    Attributes:
        tensors: the values, e.g. the velocity of the asynchronous leapfrog, or past values of F.
        times: host numbers that belong to them: the times of past values, or how many there were.
    """

    tensors: tuple[Tensor, ...] = ()
    times: tuple[float, ...] = ()


NOTHING = Memory()


@dataclass(slots=True)
class Trial:
    """One step that was tried: from x at span.t to x_next at span.t_next.

    Attributes:
        span: where it goes.
        x: state at its start.
        x_next: state at its end.
        stages: values of F that the step computed, the first one at its start where the method evaluates F there.
        error: local error estimate of x_next, or None.
        end: F(span.t_next, x_next), once it is known.
        given: the memory that the step was given.
        memory: what the next step is to be given.
        first: F(span.t, x), once it is known.
        converged: False if the step's equations could not be solved.
        residual: then, what was left of them, in units of what was asked for.
        inner: the step of the method that this one's method is a form of.
        unsolved: where each sample has its own step, what was left of its equations, 0 where they were solved; None if
            all were. On the host.
        further: values of F that the dense output needs beside the stages, once they are known.
    """

    span: Span
    x: Tensor
    x_next: Tensor
    stages: list[Tensor]
    error: Any = None
    end: Tensor | None = None
    given: Memory = NOTHING
    memory: Memory = NOTHING
    first: Tensor | None = None
    converged: bool = True
    inner: Trial | None = None
    further: list[Tensor] | None = None
    residual: float = 0.0
    unsolved: Tensor | None = None

    def rows(self, rows: Tensor) -> Trial:
        """The same step of some of the samples, where each has a span of its own.

        Args:
            rows: which, (n,) on the host.
        """
        index = rows.to(self.x.device, non_blocking=True)
        pick = lambda part: part.index_select(0, index) if isinstance(part, Tensor) else part  # noqa: E731
        parts: dict[str, Any] = {
            entry.name: tree_map(pick, getattr(self, entry.name)) for entry in fields(self) if entry.name != "unsolved"
        }
        inner = None if self.inner is None else self.inner.rows(rows)
        return Trial(**parts | {"span": parts["span"].rows(rows, index), "inner": inner})


class Stepper:
    """A method. To add one, subclass, and add an instance to `solvers`.

    Attributes:
        name: its name in the field.
        order: order of accuracy p.
        error_order: q of the error estimate, which falls like h^q; None for a method without one.
        reference: the paper.
        partitioned: whether the state is a pair (q, p), each half of it.
        advance: (f, spans, x) -> x_next of a method without memory after steps on one piece of depth, where nothing
            else of them is wanted; or None.
        lasting: whether the memory goes on where F becomes another function; if not, it is made anew there.
        per_sample: whether each sample may have a step of its own: then h in `Span` may be a tensor that broadcasts
            against the state, and nothing of the step may depend on other samples.
        options: names of the options that `prepare` finds in the scheme.
        looks_back: how many steps before this one it has to know the starts of, where each sample has its own
            (`Spans.before`).
        controller: how its adaptive steps are picked where nothing is said of it, a name of `controllers`.
        weakness: what may be to blame where its steps gave NaN or infinity, and what to do.
        first_order: order in the rule for the first adaptive step; None for `error_order`.
    """

    name: str
    order: int
    error_order: int | None = None
    reference: str = ""
    partitioned: bool = False
    advance: Callable[[Evaluate, Sequence[Span], Tensor], Tensor] | None = None
    lasting: bool = False
    per_sample: bool = False
    options: tuple[str, ...] = ()
    looks_back: int = 0
    controller: str = "PI6020"
    weakness: str = ""
    first_order: int | None = None

    @property
    def adaptive(self) -> bool:
        """Whether it can pick its own steps."""
        return self.error_order is not None

    def prepare(self, problem: Problem) -> Stepper:
        """The method with what it has to know of a solve."""
        return self

    def check(self, x0: Tensor) -> None:
        """Raise `InputError` if the method cannot take a state of this shape."""

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """What the method carries beside the state, at the beginning and, unless it lasts, where F becomes another.

        Args:
            f: evaluates F.
            t: where the walk begins.
            x: state there.
            first: F(t, x) where it is known already.
        """
        return NOTHING

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`.

        Args:
            f: evaluates F at host time t and state x.
            span: the step; what is evaluated at its end is evaluated at t_next exactly.
            x: state at the start.
            memory: from `start` or from the last accepted step.
            first: F(t, x) where it is known already.
            error: whether the error estimate is wanted.
        """
        raise NotImplementedError

    def error_ratio(self, error: Any, weight: Tensor, norm: Callable[[Tensor], Any]) -> Any:
        """Size of the error estimate in units of the tolerance; a step is accepted up to 1.

        Args:
            error: `Trial.error`.
            weight: atol + rtol |x| per element.
            norm: what is taken of the quotient: over the whole state, or for each sample.
        """
        return norm(error / weight)

    def interpolate(self, f: Evaluate, trial: Trial, t: float) -> Tensor:
        """x(t) inside a step; it may evaluate F at the step's ends, once for the step.

        Cubic Hermite interpolation, unless the method has its own.

        Args:
            f: evaluates F.
            trial: the step.
            t: time inside the step.

        Reference:
            Hairer, Nørsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.6.
        """
        return hermite(trial, self.slope(f, trial), self.end_slope(f, trial), t)

    def slope(self, f: Evaluate, trial: Trial) -> Tensor:
        """F at the start of a step, evaluated if it is not known."""
        if trial.first is None:
            trial.first = f(trial.span.t, trial.x)
        return trial.first

    def end_slope(self, f: Evaluate, trial: Trial) -> Tensor:
        """F at the end of a step, evaluated if it is not known."""
        if trial.end is None:
            trial.end = f(trial.span.t_next, trial.x_next)
        return trial.end


def hermite(trial: Trial, first: Tensor, end: Tensor, t: float) -> Tensor:
    """The cubic with values x, x_next and slopes first, end at the ends of a step."""
    h, theta = trial.span.h, trial.span.fraction(t)
    s = 1 - theta
    value = trial.x * (s * s * (1 + 2 * theta))
    value = plus_scaled(value, trial.x_next, theta * theta * (3 - 2 * theta))
    value = plus_scaled(value, first, h * theta * s * s)
    return plus_scaled(value, end, -h * theta * theta * s)


def plus_scaled(x: Tensor, k: Tensor, factor: Any) -> Tensor:
    """x + factor k, the factor a number or a tensor that broadcasts against x."""
    return torch.addcmul(x, k, factor) if isinstance(factor, Tensor) else torch.add(x, k, alpha=factor)

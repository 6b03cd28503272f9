"""An initial value problem over depth: F with its weights, where it starts, where the answer is wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.solvers.callbacks import Callbacks
from odenet.solvers.ends import StepEnds
from odenet.solvers.events import Event, Hit
from odenet.solvers.field import VectorField
from odenet.solvers.grid import Piece, check_grid, landings, pieces_of_depth, spans_of, stepped_grid, uniform_grid
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import Span, Stepper
from odenet.solvers.times import host_interval, output_times


def transforms() -> list[Any]:
    """The transforms of `torch.func` (grad, vjp, jvp, vmap) that the caller is inside of."""
    return get_interpreter_stack() or []


class Problem:
    """x' = F(t, x, *args), x(t0) = x0, wanted at times ts, to be walked by a scheme.

    Args:
        weights: F with its weights over depth.
        x0: (batch, ...) initial state.
        interval: (t0, t1); t1 < t0 walks backwards.
        scheme: how it is walked.
        ts: times of the answer, from t0 towards t1, or None for t1 alone.
        args: handed to F after (t, x).
        dense: whether the solution is to be callable at any time.
        events: what to look for along the way.

    Attributes:
        ts: times of the answer as host numbers; t1 if none were given.
        start: where the walk begins; t0, or an event from which it goes on.
        field: F with its bookkeeping.
        stats: what happened so far.
        callbacks: told of every step of a native solver.
        backward_callbacks: told of every step that a native adjoint takes on the way back.
        ends: sums over the accepted steps, or gathers the states at their ends.

    Raises:
        InputError: a value that cannot be used.
    """

    def __init__(
        self,
        weights: DepthWeights,
        x0: Tensor,
        interval: Sequence[Any],
        scheme: Scheme,
        ts: Any = None,
        args: tuple[Any, ...] = (),
        dense: bool = False,
        events: Sequence[Event] = (),
    ):
        if not isinstance(x0, Tensor):
            raise InputError(f"the state must be a tensor, got {type(x0).__name__}")
        if x0.dtype.itemsize < 4 and torch.is_autocast_enabled(x0.device.type):
            x0 = x0.float()
        scheme.check_dtype(x0.dtype, x0.device.type)
        scheme.check_shape(x0.shape)
        levels = transforms()
        if levels and scheme.adaptive and any(level.key() == TransformType.Vmap for level in levels):
            raise InputError(
                "under torch.func.vmap an adaptive solver cannot look at its error; give a fixed-step solver steps=N, "
                "or solve the whole batch at once"
            )
        self.t0, self.t1 = host_interval(interval)
        self.weights, self.x0, self.scheme, self.args, self.dense = weights, x0, scheme, args, dense
        self.events, self.start, self.begins_with = events, self.t0, None
        self.ts = [self.t1] if ts is None else output_times(ts, self.t0, self.t1)
        self.stats = Stats()
        self.callbacks: Callbacks | None = None
        self.backward_callbacks: Callbacks | None = None
        self.ends: StepEnds | None = None
        self._functions: list[Callable[..., Tensor]] | None = None
        self._pieces = pieces_of_depth(self.t0, self.t1, weights.knots, scheme.jumps)
        self._spans = None if scheme.adaptive else self._grid()

    @cached_property
    def field(self) -> VectorField:
        """F with its bookkeeping; made when it is first asked for, as a compiled solve does not."""
        return VectorField(
            self.weights,
            self.args,
            self.x0,
            self._pieces,
            self.stats,
            max_nfe=self.scheme.max_nfe,
            jumps=self.scheme.jumps,
        )

    @cached_property
    def stepper(self) -> Stepper:
        """The native method that takes the steps; a gradient method may put a reversible form of it here."""
        stepper = solvers[self.scheme.solver].prepare(self)
        return stepper if self.callbacks is None else self.callbacks.watch(stepper)

    def after(self, hit: Hit, x: Tensor, ts: list[float]) -> Problem:
        """The rest of this problem, from state x at an event on; F, its bookkeeping and its counts stay the same.

        Args:
            hit: the event.
            x: state there.
            ts: times of the answer after it.
        """
        rest = copy.copy(self)
        rest.x0, rest.ts, rest.start, rest.begins_with = x, ts, hit.t, hit
        sign = self.direction
        clip = lambda t: t if sign * t > sign * hit.t else hit.t  # noqa: E731
        rest._pieces = [Piece(w, clip(a), clip(b)) for w, a, b in self._pieces]
        if self._spans is not None:
            left = [s._replace(t=clip(s.t)) for s in self._spans if sign * s.t_next > sign * hit.t]
            rest._spans = [s if s.t != hit.t else s._replace(h=s.t_next - s.t) for s in left]
        return rest

    def event_value(self, event: Event, t: float, x: Tensor) -> Tensor:
        """An event's function, flattened, without a graph.

        Raises:
            InputError: it is not a real tensor.
        """
        with torch.no_grad():
            g = event.function(self.field.time(t), x.detach(), *self.args)
        if not isinstance(g, Tensor) or g.dtype.is_complex or g.dtype == torch.bool:
            raise InputError(
                f"an event's function must return a real tensor, got {getattr(g, 'dtype', type(g).__name__)}; it must "
                "be zero at the event, such as x[0] - 1"
            )
        return g.reshape(-1).clone()

    @property
    def functions(self) -> list[Callable[..., Tensor]]:
        """F on every piece of depth."""
        if self._functions is None:
            self._functions = [self.weights.piece(piece.weights, self.t0, self.t1) for piece in self._pieces]
        return self._functions

    @property
    def resolution(self) -> float:
        """What a step has to be longer than to change t."""
        return 16 * torch.finfo(torch.float64).eps * max(abs(self.t0), abs(self.t1))

    @property
    def direction(self) -> float:
        """1 if depth is walked forwards, -1 if backwards."""
        return -1.0 if self.t1 < self.t0 else 1.0

    def pieces(self) -> list[tuple[float, float]]:
        """(start, end) of every piece of depth, between knots of the weights and jumps of F."""
        return [(piece.start, piece.end) for piece in self._pieces]

    def starts(self) -> list[float]:
        """Start of every piece."""
        return [piece.start for piece in self._pieces]

    def landings(self) -> list[list[float]]:
        """For each piece the times at which a step has to end."""
        if len(self._pieces) == 1 and not self.scheme.stops:
            return [[self._pieces[0].end]]
        return landings(self._pieces, self.scheme.stops)

    def spans(self) -> list[Span]:
        """The steps of a fixed-step scheme."""
        assert self._spans is not None
        return self._spans

    def _grid(self) -> list[Span]:
        scheme, t0, t1 = self.scheme, self.t0, self.t1
        if t0 == t1:
            return []
        h = None
        if scheme.steps is not None:
            times, h = uniform_grid(t0, t1, scheme.steps), (t1 - t0) / scheme.steps
        elif scheme.step_size is not None:
            times = stepped_grid(self._pieces, scheme.stops, scheme.step_size)
        else:
            assert scheme.grid is not None
            times = check_grid(scheme.grid, t0, t1)
        if len(times) - 1 > scheme.max_steps:
            raise InputError(f"that is {len(times) - 1} steps, more than max_steps={scheme.max_steps}; raise max_steps")
        return list(spans_of(tuple(times), tuple(self._pieces), scheme.stops, h))

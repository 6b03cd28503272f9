"""An initial value problem in which each sample has its own interval, steps and end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.solvers.events import Event
from odenet.solvers.implicit import ImplicitRungeKutta
from odenet.solvers.multistep import Adams
from odenet.solvers.per_sample.companion import SampleCompanied
from odenet.solvers.per_sample.field import SampleField
from odenet.solvers.per_sample.grids import Grids
from odenet.solvers.per_sample.hit import SampleHit
from odenet.solvers.per_sample.implicit import SampleImplicit
from odenet.solvers.per_sample.multistep import SampleAdams
from odenet.solvers.per_sample.timetable import Timetable
from odenet.solvers.problem import transforms
from odenet.solvers.registry import solvers
from odenet.solvers.scheme import Scheme
from odenet.solvers.stats import SampleStats, Stats
from odenet.solvers.stepper import Stepper
from odenet.solvers.times import ends_of, host_time, host_times


class SampleProblem:
    """x' = F(t, x, *args), x(t0) = x0, sample by sample.

    Args:
        weights: F with its weights over depth.
        x0: (batch, ...) initial state.
        interval: (t0, t1), each a number or a tensor (batch,).
        scheme: how it is walked.
        ts: times of the answer from t0 towards t1, (times,) or (times, batch); None for t1 alone.
        args: handed to F after (t, x).
        dense: whether the solution is to be callable.
        events: what to look for along the way.

    Attributes:
        t0: starts, (batch,), float64 on the host.
        t1: ends, likewise.
        sign: 1 where depth is walked forwards, -1 where backwards.
        ts: times of the answer, (times, batch), likewise, or None.
        shared: whether all samples have the same times of the answer.
        walking: the samples that have a way to go.
        begin: where this walk begins: t0, or the event that changed the state, (batch,).
        segments: the segment of its way on which each begins.
        grids: the steps of a fixed-step scheme.
        passed: how many times of the answer lie behind each where the walk begins; None at t0.
        begins_with: the events that changed the states in which the walk begins.

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
        if x0.dim() == 0:
            raise InputError("per_sample=True needs a state with the batch first, (batch, ...), got a 0-d tensor")
        if x0.dtype.itemsize < 4 and torch.is_autocast_enabled(x0.device.type):
            x0 = x0.float()
        scheme.check_dtype(x0.dtype, x0.device.type)
        scheme.check_shape(x0.shape)
        if x0.dtype.itemsize < 4:
            raise InputError(
                f"per_sample=True needs a state of at least 32 bits, got {x0.dtype}; F may run in low precision under "
                "torch.autocast"
            )
        if transforms():
            raise InputError(
                "per_sample=True gathers samples on the host, which torch.func's transforms do not allow; call it "
                "outside of them, or give a fixed-step solver steps=N and leave out per_sample"
            )
        self.weights, self.x0, self.scheme, self.args, self.dense, self.events = (
            weights,
            x0,
            scheme,
            args,
            dense,
            events,
        )
        batch = x0.shape[0]
        self.t0, self.t1 = sample_interval(interval, batch)
        self.sign = torch.where(self.t1 < self.t0, -1.0, 1.0).double()
        self.ts, self.shared = sample_times(ts, self.t0, self.t1)
        self.stats = Stats(samples=SampleStats.zeros(batch))
        dtype = torch.float32 if x0.dtype.itemsize < 4 else x0.dtype.to_real()
        table = Timetable.of(self.t0, self.t1, weights.knots, scheme.jumps, scheme.stops, dtype)
        intervals = (self.t0, self.t1)
        self.field = SampleField(weights, args, x0, self.stats, table, scheme.per_sample_args, intervals)
        if self.stepper.partitioned and x0.dim() < 2:
            raise InputError(
                f"solver {scheme.solver!r} takes the state of each sample as a pair (q, p), which a state of shape "
                f"{tuple(x0.shape)} has none of; give (batch, 2)"
            )
        self.stepper.check(x0)
        self.begin, self.segments = self.t0, torch.zeros(batch, dtype=torch.long)
        self.walking = (table.count > 0).nonzero()[:, 0]
        self.passed: Tensor | None = None
        self.grids = None if scheme.adaptive else Grids(scheme, self.t0, self.t1, weights.knots)
        self.begins_with: Sequence[SampleHit] = ()

    def goes_on(self, hit: SampleHit) -> bool:
        """Whether a sample goes on from a state that an event has changed; at t1 it ends."""
        return self.events[hit.event].update is not None and hit.t != float(self.t1[hit.sample])

    def after(self, hits: Sequence[SampleHit], x: Tensor, passed: Tensor) -> SampleProblem:
        """The rest of this problem for the samples that an event has changed; F and its counts stay the same.

        Args:
            hits: the events, one for each of these samples, in their order.
            x: the states from which they go on, (rows, ...).
            passed: for each sample of the batch, how many times of the answer lie behind it.
        """
        rest, table = copy.copy(self), self.field.timetable
        samples = torch.tensor([hit.sample for hit in hits])
        t, sign = torch.tensor([hit.t for hit in hits], dtype=torch.float64), self.sign[samples]
        rest.x0 = torch.zeros_like(self.x0).index_copy(0, samples.to(x.device), x)
        rest.walking, rest.passed, rest.begins_with = samples, passed, hits
        rest.begin = self.begin.index_copy(0, samples, t)
        behind = (table.end[samples] * sign[:, None] <= (t * sign)[:, None]).sum(1)
        rest.segments = self.segments.index_copy(0, samples, behind)
        return rest

    @cached_property
    def functions(self) -> list[Callable[..., Tensor]]:
        """F on every piece of weights."""
        interval = float(self.t0[0]), float(self.t1[0])  # one for all, if they vary over it
        return [self.weights.piece(index, *interval) for index in range(self.weights.pieces)]

    @cached_property
    def stepper(self) -> Stepper:
        """The native method that takes the steps."""
        stepper = solvers[self.scheme.solver]
        if isinstance(stepper, ImplicitRungeKutta):
            return (SampleImplicit if stepper.companion is None else SampleCompanied)(stepper, self)
        return SampleAdams(stepper, self.scheme.options) if isinstance(stepper, Adams) else stepper


def sample_interval(interval: Sequence[Any], batch: int) -> tuple[Tensor, Tensor]:
    """(t0, t1) of each sample, float64 on the host.

    Raises:
        InputError: not a pair of finite numbers or tensors (batch,).
    """
    t0, t1 = ends_of(interval)
    return _one_each("t0", t0, batch), _one_each("t1", t1, batch)


def _one_each(name: str, t: Any, batch: int) -> Tensor:
    if isinstance(t, Tensor) and t.dim() == 1:
        if t.shape != (batch,):
            raise InputError(f"{name} must be a number or one for each of the {batch} samples, got {tuple(t.shape)}")
        return _host(name, t)
    return torch.full((batch,), host_time(name, t), dtype=torch.float64)


def _host(name: str, t: Tensor) -> Tensor:
    if t.requires_grad and torch.is_grad_enabled():
        raise InputError(f"{name} requires a gradient, but with per_sample=True times are constants of it; detach it")
    host = t.detach().to("cpu", torch.float64)
    if not bool(host.isfinite().all()):
        raise InputError(f"{name} must hold finite numbers, got {host.tolist()}")
    return host


def sample_times(ts: Any, t0: Tensor, t1: Tensor) -> tuple[Tensor | None, bool]:
    """The times of the answer for each sample, (times, batch) float64 on the host, and whether they are the same.

    Raises:
        InputError: not times that run from t0 towards t1 for each sample.
    """
    if ts is None:
        return None, bool((t0 == t0[:1]).all()) and bool((t1 == t1[:1]).all())
    times = _host("ts", ts) if isinstance(ts, Tensor) else torch.tensor(host_times("ts", ts), dtype=torch.float64)
    shared, batch = times.dim() < 2, len(t0)
    if shared:
        times = times.reshape(-1, 1)
    if not len(times) or times.shape[1:] not in ((1,), (batch,)) or times.dim() != 2:
        raise InputError(f"ts must be (times,) or (times, {batch}), a column a sample, got {tuple(times.shape)}")
    times = times.expand(-1, batch)
    if isinstance(ts, Tensor) and ts.is_floating_point():
        near = torch.finfo(ts.dtype).eps * torch.maximum(t0.abs(), t1.abs())
        for end in (t0, t1):
            times = torch.where((times - end).abs() <= near, end, times)
    sign = (t1 - t0).sign()
    steps = torch.diff(torch.cat([t0[None], times, t1[None]]), dim=0)
    wrong = ((steps * sign < 0) | ((sign == 0) & (steps != 0))).any(0)
    if bool(wrong.any()):
        b = int(wrong.nonzero()[0])
        raise InputError(
            f"ts must run from t0={float(t0[b]):g} towards t1={float(t1[b]):g} without turning back for sample {b}, "
            f"got {times[:, b].tolist()}"
        )
    return times.contiguous(), shared

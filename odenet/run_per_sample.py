"""From a checked scheme to a solution in which every sample has its own steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.per_sample import solve_samples
from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.gradients import gradients
from odenet.gradients.sample_times import SampleTimes
from odenet.gradients.times import root_time
from odenet.solvers.events import Event
from odenet.solvers.per_sample import SampleProblem, SampleSolution
from odenet.solvers.per_sample.events import SampleHit, event_value
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Occurrences
from odenet.solvers.states import Packed, Packing, is_tree, packed_event


def run_per_sample(
    weights: DepthWeights,
    x0: Any,
    interval: Sequence[Any],
    scheme: Scheme,
    ts: Any = None,
    args: tuple[Any, ...] = (),
    dense: bool = False,
    events: Sequence[Event] = (),
) -> SampleSolution:
    """Solve with weights and a scheme that have been checked already; as `odenet.run.run`.

    Args:
        weights: F with its weights over depth.
        x0: (batch, ...) initial state, or a tree of such tensors.
        interval: (t0, t1), each a number or a tensor (batch,).
        scheme: how it is walked, with `per_sample`.
        ts: times of the answer, (times,) or (times, batch), or None for t1.
        args: handed to F after (t, x).
        dense: whether the solution is to be callable.
        events: events to look for.
    """
    packing = None
    if is_tree(x0):
        packing = Packing(x0)
        if not packing.together:
            raise InputError("per_sample=True needs every tensor of the state to have the batch as its first dimension")
        x0, weights = packing.pack(x0), Packed(weights, packing)
        events = [packed_event(event, packing) for event in events]
        rtol, atol = (packing.tolerance(name, getattr(scheme, name), x0.device) for name in ("rtol", "atol"))
        scheme = scheme.but(rtol=rtol, atol=atol, norm=packing.norm(scheme.norm))
    times = SampleTimes(interval, ts)
    problem = SampleProblem(weights, x0, times.interval, scheme, times.ts, args, dense, events)
    problem.x0 = times.start(problem)
    method: Any = gradients[scheme.gradient]
    solution: SampleSolution = solve_samples(problem) or method.solve_samples(problem)
    if dense and scheme.gradient != "autograd" and solution.values.requires_grad:
        raise InputError(
            f"dense=True with gradient={scheme.gradient!r} would lose the gradient of sol(t); "
            "use gradient='autograd', give the times as ts, or solve under torch.no_grad()"
        )
    solution.values = times.finish(problem, solution)
    unpack = solution.unpack = None if packing is None else packing.unpack
    for number, event in enumerate(events):
        hits = [(hit, place) for hit, place in solution.hits_found if hit.event == number]
        ts_found, ys, elements, samples = _moments(problem, event, hits, solution.values)
        solution.events.append(Occurrences(ts_found, unpack(ys, 1) if unpack else ys, elements, samples))
    return solution


def _moments(
    problem: SampleProblem, event: Event, hits: Sequence[tuple[SampleHit, int]], values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Times, states, elements and samples of what happened to one event, the first two differentiable."""
    device = values.device
    place, sample, segment, element = (
        torch.tensor(numbers, dtype=torch.long)
        for numbers in (
            [place for _, place in hits],
            [hit.sample for hit, _ in hits],
            [hit.segment for hit, _ in hits],
            [hit.element for hit, _ in hits],
        )
    )
    t = torch.tensor([hit.t for hit, _ in hits], dtype=torch.float64)
    x = values.index_select(0, place.to(device))
    ts = t.to(device, torch.float32 if device.type == "mps" else torch.float64)
    if not hits or not torch.is_grad_enabled():
        return ts, x, element, sample
    f = _Unordered(problem, sample, segment)
    index = torch.arange(len(hits), device=device), element.to(device)
    g = event_value(event, f, t, x)[index]  # pyright: ignore[reportArgumentType]
    if not g.requires_grad:
        return ts, x, element, sample
    with torch.no_grad(), problem.field.recompute():
        k = f.slope(ts, x)
    at = [f.time(t).requires_grad_(), x.detach().requires_grad_()]
    moving = event.function(*at, *f.args).reshape(len(hits), -1)[index].sum()
    by_time, by_state = torch.autograd.grad(moving, at, allow_unused=True, materialize_grads=True)
    rate = by_time + (by_state.conj() * k).flatten(1).sum(1).real
    ts = root_time(g, rate.detach(), ts)
    shift = (ts - ts.detach()).to(x.dtype.to_real()).reshape(-1, *(1,) * (x.dim() - 1))
    return ts, x + k * shift, element, sample


class _Unordered:
    """F and its arguments for samples in any order, some of them several times."""

    def __init__(self, problem: SampleProblem, samples: Tensor, segments: Tensor):
        self.field = problem.field
        self.args = problem.field.rows_of(samples.to(problem.x0.device))
        self.each = [problem.field.on(samples[n : n + 1], segments[n : n + 1]) for n in range(len(samples))]

    def time(self, t: Tensor) -> Tensor:
        """Host times as F is shown them."""
        return t.to(self.field.device, self.field.time_dtype)

    def slope(self, t: Tensor, x: Tensor) -> Tensor:
        """F for each of them."""
        rows: Sequence[Rows] = self.each
        return torch.cat([f(t[n : n + 1], x[n : n + 1]) for n, f in enumerate(rows)])

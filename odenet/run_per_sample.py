"""From a checked scheme to a solution in which every sample has its own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from odenet.compiled.per_sample import solve_samples
from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.gradients import gradients
from odenet.gradients.sample_restarts import Restarts
from odenet.gradients.sample_times import SampleTimes
from odenet.solvers.events import Event
from odenet.solvers.per_sample import SampleProblem, SampleSolution
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
    walk: Callable[[SampleProblem], SampleSolution] = method.solve_samples
    solution = solve_samples(problem) or walk(problem)
    occurrences: list[Occurrences] = []
    if events:
        answer = Restarts(problem)
        while (rest := answer.add(solution)) is not None:
            solution = walk(rest)
        solution, occurrences = answer.solution()
    if dense and scheme.gradient != "autograd" and solution.values.requires_grad:
        raise InputError(
            f"dense=True with gradient={scheme.gradient!r} would lose the gradient of sol(t); "
            "use gradient='autograd', give the times as ts, or solve under torch.no_grad()"
        )
    solution.values = times.finish(problem, solution)
    unpack = solution.unpack = None if packing is None else packing.unpack
    solution.events = occurrences
    if unpack is not None:
        for found in occurrences:
            found.ys = unpack(found.ys)
    return solution

"""A compiled solve from the host's side: the graphs of one F and scheme, their record, and the way back over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.graphs import adaptive, backward, fixed
from odenet.compiled.lowering import backend
from odenet.compiled.scope import Leaves
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers
from odenet.solvers.stepper import Span

FIRST_RECORD, LARGEST_RECORD = 64, 2**28


@dataclass
class Chunk:
    """A part of the accepted grid, with the states at the starts of its steps.

    Attributes:
        grid: ends of the steps, one more than there are steps.
        sizes: of the steps, signed.
        states: at their starts; empty if they are not kept.
        count: number of steps.
    """

    grid: Tensor
    sizes: Tensor
    states: Tensor
    count: int


@dataclass
class Walked:
    """What a compiled solve did.

    Attributes:
        chunks: the accepted grid.
        states: the answers.
        inside: times of the answers between t0 and t1, in float64 on the state's device.
    """

    chunks: list[Chunk]
    states: list[Tensor]
    inside: Tensor


class Graphs:
    """The graphs of one kind of solve.

    Args:
        problem: a solve of that kind.

    Attributes:
        compilations: how many graphs have been made so far.
    """

    def __init__(self, problem: Problem):
        scheme = problem.scheme
        stepper = solvers[scheme.solver]
        assert isinstance(stepper, ExplicitRungeKutta)
        self.tableau, self.compilations, self.capacity = stepper.tableau, 0, FIRST_RECORD
        self.used = self.tableau.used
        self._grid: tuple[Any, ...] = ()
        self._backs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        if scheme.adaptive:
            assert stepper.error_order is not None
            graph = adaptive(self.tableau, scheme.step_controller, stepper.error_order, scheme.first_step is None)
        else:
            graph = fixed(self.tableau)
        self._forward = compiled(graph, self._notice)

    def walk(self, problem: Problem, keep: bool) -> Walked | None:
        """Solve, and count; None if the solve broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.
        """
        return (self._adaptive if problem.scheme.adaptive else self._fixed)(problem, keep)

    def _adaptive(self, problem: Problem, keep: bool) -> Walked | None:
        scheme, x, device = problem.scheme, problem.x0.detach().contiguous(), problem.x0.device
        rtol, atol = scheme.tolerances
        t0, t1, sign = problem.t0, problem.t1, problem.direction
        inside = [t for t in problem.ts if t not in (t0, t1)]
        times = torch.tensor(inside, dtype=torch.float64, device=device)
        outputs = x.new_empty(len(inside), *x.shape)
        resolution = 16 * torch.finfo(torch.float64).eps * max(abs(t0), abs(t1))
        where = [t0, scheme.first_step or 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
        k, chunks, sizes, done, tries, forced, starts = x, [], [], t0 == t1, 0.0, 0.0, 0
        capacity = self.capacity
        if keep:
            capacity = max(8, min(capacity, LARGEST_RECORD // (x.numel() * x.element_size())))
        while not done:
            fresh = torch.tensor(not chunks, device=device)
            record = (
                torch.empty(capacity, dtype=torch.float64, device=device),
                torch.empty(capacity, dtype=torch.float64, device=device),
                x.new_empty(capacity if keep else 2, *x.shape),
            )
            numbers = [t1, sign, rtol, atol, scheme.h_min, scheme.h_max, resolution, scheme.max_steps, capacity]
            at, x, k = self._forward(
                problem.weights.piece(0), _numbers([*numbers, keep], device), _numbers(where, device), _any_batch(x),
                k, problem.args,
                (*record[:2], _any_batch(record[2], 1), _any_batch(times), _any_batch(outputs, 1)), fresh,
            )  # fmt: skip
            n, *where = at.tolist()
            count, t, tries, forced = int(n), where[0], where[4], where[5]
            done, starts = t == t1, starts + 1
            if not done and count < capacity:
                return None
            sizes += record[1][:count].tolist()
            grid = torch.cat([record[0][:count], at[1:2]])
            chunks.append(Chunk(grid, record[1], record[2], count))
        accepted = len(sizes)
        s, fsal = self.tableau.stages, self.tableau.fsal
        nfe = starts * (2 if scheme.first_step is None else 1) + int(tries) * (s - 1 if fsal else s)
        if scheme.max_nfe is not None and nfe > scheme.max_nfe:
            return None
        stats = problem.stats
        stats.nfe, stats.accepted, stats.rejected = nfe, accepted, int(tries) - accepted
        stats.forced, stats.h = int(forced), [abs(h) for h in sizes]
        self.capacity = max(self.capacity, 2 ** math.ceil(math.log2(accepted + 1)))
        rest = iter(outputs)
        states = [problem.x0 if t == t0 else x if t == t1 else next(rest) for t in problem.ts]
        return Walked(chunks, states, times)

    def _fixed(self, problem: Problem, keep: bool) -> Walked | None:
        spans, x, device = problem.spans(), problem.x0.detach().contiguous(), problem.x0.device
        scheme, count = problem.scheme, len(spans)
        inside = [t for t in problem.ts if t not in (problem.t0, problem.t1)]
        if scheme.max_nfe is not None and count * self.used > scheme.max_nfe:
            return None
        grid, sizes, index = self._grid_of(spans, device)
        every = torch.tensor(int(keep or bool(inside)), device=device)
        xs = x.new_empty(max(2, count) if keep or inside else 2, *x.shape)
        end = self._forward(
            problem.weights.piece(0), grid, sizes, torch.tensor(count, device=device), _any_batch(x), problem.args,
            every, _any_batch(xs, 1),
        )  # fmt: skip
        if device.type == "cpu" and not bool(torch.isfinite(end.sum())):
            return None
        stats = problem.stats
        stats.nfe, stats.accepted, stats.h = count * self.used, count, [abs(span.h) for span in spans]
        states = [problem.x0 if t == problem.t0 else end if t == problem.t1 else xs[index[t]] for t in problem.ts]
        times = torch.tensor(inside, dtype=torch.float64, device=device)
        return Walked([Chunk(grid, sizes, xs, count)], states, times)

    def _grid_of(self, spans: Sequence[Span], device: torch.device) -> tuple[Tensor, Tensor, dict[float, int]]:
        key = tuple(spans), device
        if not self._grid or self._grid[0] != key:
            ends = [spans[0].t, *(span.t_next for span in spans)]
            sizes = _numbers([span.h for span in spans], device)
            self._grid = key, (_numbers(ends, device), sizes, {t: i for i, t in enumerate(ends)})
        return self._grid[1]

    def back(
        self, problem: Problem, walked: Walked, leaves: Leaves, a: Tensor, cotangents: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Cotangents of x0 and of the leaves; what it takes is counted.

        Args:
            problem: what was solved.
            walked: its record.
            leaves: what F uses.
            a: cotangent of x(t1).
            cotangents: of the answers between t0 and t1.
        """
        F, args = problem.weights.piece(0), problem.args
        names, places, tensors = leaves
        dense = problem.scheme.adaptive
        key = names, places
        if key not in self._backs:
            self._backs[key] = compiled(backward(self.tableau, names, dense), self._notice)
        seeds, inside = a.new_empty(0, *a.shape), walked.inside[:0]
        if cotangents:
            inside = _any_batch(walked.inside)
            seeds = torch.stack([torch.zeros_like(a) if c is None else c for c in cotangents])
        values = tuple(tensor.detach() for tensor in tensors)
        gradients = tuple(torch.zeros_like(value) for value in values)
        steps, used = 0, self.tableau.stages if dense and cotangents else self.used
        for chunk in reversed(walked.chunks):
            a, *rest = self._backs[key](
                F, chunk.grid, chunk.sizes, _any_batch(chunk.states, 1), torch.tensor(chunk.count, device=a.device),
                _any_batch(a.contiguous()), gradients, values, _detached(args), places, inside,
                _any_batch(seeds, 1),
            )  # fmt: skip
            gradients, steps = tuple(rest), steps + chunk.count
        stats = problem.stats
        stats.nfe_backward += used * steps
        stats.vjps += used * steps
        stats.steps_backward += steps
        return a, *gradients

    def _notice(self) -> None:
        self.compilations += 1


def compiled(function: Callable[..., Any], notice: Callable[[], None]) -> Callable[..., Any]:
    """A function as a graph of its own: dynamo counts recompilations by code object, and these are of many F.

    Args:
        function: to be captured whole.
        notice: called with every graph that is made.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    own = FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
    graph = torch.compile(own, fullgraph=True, backend=backend(notice))

    def call(*arguments: Any) -> Any:
        with torch.no_grad():
            return graph(*arguments)

    return call


def _numbers(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def _any_batch(x: Tensor, dimension: int = 0) -> Tensor:
    """x, of which the graph is to take any batch size."""
    torch._dynamo.maybe_mark_dynamic(x, (0, 1) if dimension else 0)
    return x


def _detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)

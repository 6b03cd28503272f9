"""A compiled solve from the host's side: the graphs of one F and scheme, their record, and the way back over it."""

from __future__ import annotations

import itertools
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

FIRST_RECORD, LARGEST_RECORD, MOST_CONSTANTS = 64, 2**28, 256
BOTH = (0, 1)
_numbers_of_graphs = itertools.count()


@dataclass
class Chunk:
    """A part of the accepted grid, with the states at the starts of its steps.

    Attributes:
        grid: ends of the steps, one more than there are steps, and then anything.
        sizes: of the steps, signed, and then anything.
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
        small: whether its states are so small that one thread is faster than several.

    Attributes:
        compilations: how many graphs have been made so far.
    """

    def __init__(self, problem: Problem, small: bool = False):
        scheme = problem.scheme
        stepper = solvers[scheme.solver]
        assert isinstance(stepper, ExplicitRungeKutta)
        self.tableau, self.compilations, self.capacity = stepper.tableau, 0, FIRST_RECORD
        self.used, self._small = self.tableau.used, small
        self._grid: tuple[Any, ...] = ()
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._marked: set[tuple[Any, ...]] = set()
        self._backs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        if scheme.adaptive:
            assert stepper.error_order is not None
            graph = adaptive(self.tableau, scheme.step_controller, stepper.error_order, scheme.first_step is None)
        else:
            graph = fixed(self.tableau)
        self._forward = compiled(graph, self._notice, self._small)

    def walk(self, problem: Problem, keep: bool) -> Walked | None:
        """Solve, and count; None if the solve broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.
        """
        return (self._adaptive if problem.scheme.adaptive else self._fixed)(problem, keep)

    def _adaptive(self, problem: Problem, keep: bool) -> Walked | None:
        scheme, x, device = problem.scheme, problem.x0.detach().contiguous(), problem.x0.device
        t0, t1 = problem.t0, problem.t1
        inside = [t for t in problem.ts if t not in (t0, t1)]
        times = self._constant(tuple(inside), device)
        outputs = x.new_empty(len(inside), *x.shape)
        capacity = self.capacity
        if keep:
            capacity = max(8, min(capacity, LARGEST_RECORD // (x.numel() * x.element_size())))
        resolution = 16 * torch.finfo(torch.float64).eps * max(abs(t0), abs(t1))
        numbers = self._constant(
            (t1, problem.direction, *scheme.tolerances, scheme.h_min, scheme.h_max, resolution, scheme.max_steps,
             capacity, keep), device,
        )  # fmt: skip
        going = self._constant((t0, scheme.first_step or 1.0, 1.0, 1.0, 0.0, 0.0, 0.0), device)
        F, k, chunks, sizes, starts = problem.weights.piece(0), x, [], [], 0
        while True:
            ts, hs = (torch.empty(capacity + 1, dtype=torch.float64, device=device) for _ in range(2))
            xs = x.new_empty(capacity if keep else 2, *x.shape)
            self._take_any((0, x, k, times, ts, hs), (BOTH, xs, outputs))
            at, x, k = self._forward(
                F, numbers, going, x, k, problem.args, (ts, hs, xs, times, outputs), self._constant(not starts, device)
            )
            n, t, _, _, _, tries, forced, _ = at.tolist()
            count, starts = int(n), starts + 1
            if t != t1 and count < capacity:
                return None
            sizes += hs[:count].tolist()
            if keep:
                ts[count] = at[1]
                chunks.append(Chunk(ts, hs, xs, count))
            if t == t1:
                break
            going = at[1:].clone()
        accepted = len(sizes)
        s, fsal = self.tableau.stages, self.tableau.fsal
        nfe = starts * (2 if scheme.first_step is None else 1) + int(tries) * (s - 1 if fsal else s)
        if scheme.max_nfe is not None and nfe > scheme.max_nfe:
            return None
        stats = problem.stats
        stats.nfe, stats.accepted, stats.rejected = nfe, accepted, int(tries) - accepted
        stats.forced, stats.h = int(forced), [abs(h) for h in sizes]
        self.capacity = max(self.capacity, 2 ** math.ceil(math.log2(accepted + 1)))
        rest = iter(outputs) if inside else iter(())
        states = [problem.x0 if t == t0 else x if t == t1 else next(rest) for t in problem.ts]
        return Walked(chunks, states, times)

    def _fixed(self, problem: Problem, keep: bool) -> Walked | None:
        spans, x, device = problem.spans(), problem.x0.detach().contiguous(), problem.x0.device
        scheme, count = problem.scheme, len(spans)
        inside = [t for t in problem.ts if t not in (problem.t0, problem.t1)]
        if scheme.max_nfe is not None and count * self.used > scheme.max_nfe:
            return None
        grid, sizes, index = self._grid_of(spans, device)
        every = self._constant(keep or bool(inside), device)
        xs = x.new_empty(max(2, count) if keep or inside else 2, *x.shape)
        self._take_any((0, x, grid, sizes), (BOTH, xs))
        end = self._forward(
            problem.weights.piece(0), grid, sizes, self._constant(count, device), x, problem.args, every, xs
        )
        if device.type == "cpu" and not bool(torch.isfinite(end.sum())):
            return None
        stats = problem.stats
        stats.nfe, stats.accepted, stats.h = count * self.used, count, [abs(span.h) for span in spans]
        states = [problem.x0 if t == problem.t0 else end if t == problem.t1 else xs[index[t]] for t in problem.ts]
        times = self._constant(tuple(inside), device)
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
            self._backs[key] = compiled(backward(self.tableau, names, dense), self._notice, self._small)
        seeds, inside = a.new_empty(0, *a.shape), self._constant((), a.device)
        if cotangents:
            inside = walked.inside
            seeds = torch.stack([torch.zeros_like(a) if c is None else c for c in cotangents])
        values = tuple(tensor.detach() for tensor in tensors)
        gradients = tuple(torch.zeros_like(value) for value in values)
        steps, used = 0, self.tableau.stages if dense and cotangents else self.used
        for chunk in reversed(walked.chunks):
            a = a.contiguous()
            self._take_any((0, a, chunk.grid, chunk.sizes, inside), (BOTH, chunk.states, seeds))
            a, *rest = self._backs[key](
                F, chunk.grid, chunk.sizes, chunk.states, self._constant(chunk.count, a.device), a, gradients, values,
                _detached(args), places, inside, seeds,
            )  # fmt: skip
            gradients, steps = tuple(rest), steps + chunk.count
        stats = problem.stats
        stats.nfe_backward += used * steps
        stats.vjps += used * steps
        stats.steps_backward += steps
        return a, *gradients

    def _constant(self, values: Any, device: torch.device) -> Tensor:
        """Numbers in float64, a count or a truth value as a tensor, which is made once."""
        key = type(values), values, device
        found = self._constants.get(key)
        if found is None:
            if len(self._constants) >= MOST_CONSTANTS:
                self._constants.clear()
            dtype = torch.float64 if isinstance(values, tuple) else None
            with torch.inference_mode(False):  # for solves outside as well
                found = self._constants[key] = torch.tensor(values, dtype=dtype, device=device)
        return found

    def _take_any(self, *groups: tuple[Any, ...]) -> None:
        """Have a graph that is made for tensors of such shapes take any batch size, and records of any length.

        Args:
            groups: dimensions whose size may be any, and the tensors of which they are.
        """
        key = tuple((x.shape[2:], min(x.shape[0], 2)) for _, *tensors in groups for x in tensors)
        if key not in self._marked:
            self._marked.add(key)
            for dimensions, *tensors in groups:
                for x in tensors:
                    torch._dynamo.maybe_mark_dynamic(x, dimensions)

    def _notice(self) -> None:
        self.compilations += 1


def compiled(function: Callable[..., Any], notice: Callable[[], None], small: bool = False) -> Callable[..., Any]:
    """A function as a graph of its own.

    Args:
        function: to be captured whole.
        notice: called with every graph that is made.
        small: whether one thread walks faster than several.
    """
    graph = torch.compile(own(function), fullgraph=True, backend=backend(notice, small))

    def call(*arguments: Any) -> Any:
        with torch.no_grad():
            return graph(*arguments)

    return call


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function: dynamo counts recompilations by code object, and these are of many F.

    It has a name of its own as well. By that dynamo remembers the numbers that it has seen, and where another method's
    coefficients come next it would make arguments of them, which lose half of float64's digits on their way.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers_of_graphs)}")
    return FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def _numbers(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def _detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)

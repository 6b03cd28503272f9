"""A compiled solve from the host's side: the graphs of one F and scheme, their record, and the way back over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.graphs import adaptive, backward, fixed
from odenet.compiled.lowering import backend
from odenet.compiled.record import ONE_THREAD, Chunk, Solves, Walked, answers, inside
from odenet.compiled.scope import Leaves
from odenet.solvers.problem import Problem

MOST_CONSTANTS = 256
BOTH = (0, 1)
_numbers_of_graphs = itertools.count()


class Graphs(Solves):
    """The graphs of one kind of solve.

    Args:
        problem: a solve of that kind.

    """

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self._small = problem.x0.numel() <= ONE_THREAD
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._marked: set[tuple[Any, ...]] = set()
        self._backs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        if self.control is not None:
            graph = adaptive(self.tableau, *self.control, problem.scheme.first_step is None)
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
        times = self._constant(tuple(inside(problem)), device)
        outputs = x.new_empty(len(times), *x.shape)
        capacity = self.room(x.numel() * x.element_size() if keep else 0)
        numbers = self._constant(
            (t1, problem.direction, *scheme.tolerances, scheme.h_min, scheme.h_max, problem.resolution,
             scheme.max_steps, capacity, keep), device,
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
        if not self.count_adaptive(problem, sizes, int(tries), int(forced), starts):
            return None
        return Walked(chunks, answers(problem, x, outputs), times)

    def _fixed(self, problem: Problem, keep: bool) -> Walked | None:
        grid, x, device = self.grid(problem), problem.x0.detach().contiguous(), problem.x0.device
        scheme, count, between = problem.scheme, len(grid.spans), inside(problem)
        if scheme.max_nfe is not None and count * self.used > scheme.max_nfe:
            return None
        keep = keep or bool(between)
        xs = x.new_empty(max(2, count) if keep else 2, *x.shape)
        self._take_any((0, x, grid.ends, grid.sizes), (BOTH, xs))
        end = self._forward(
            problem.weights.piece(0), grid.ends, grid.sizes, self._constant(count, device), x, problem.args,
            self._constant(keep, device), xs,
        )  # fmt: skip
        if device.type == "cpu" and not bool(torch.isfinite(end.sum())):
            return None
        self.count_fixed(problem, grid)
        states = answers(problem, end, (xs[grid.place[t]] for t in between))
        return Walked([Chunk(grid.ends, grid.sizes, xs, count)], states, self._constant(tuple(between), device))

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
        seeds, times = a.new_empty(0, *a.shape), self._constant((), a.device)
        if cotangents:
            times = walked.inside
            seeds = torch.stack([torch.zeros_like(a) if c is None else c for c in cotangents])
        values = tuple(tensor.detach() for tensor in tensors)
        gradients = tuple(torch.zeros_like(value) for value in values)
        steps = 0
        for chunk in reversed(walked.chunks):
            a = a.contiguous()
            self._take_any((0, a, chunk.grid, chunk.sizes, times), (BOTH, chunk.states, seeds))
            a, *rest = self._backs[key](
                F, chunk.grid, chunk.sizes, chunk.states, self._constant(chunk.count, a.device), a, gradients, values,
                _detached(args), places, times, seeds,
            )  # fmt: skip
            gradients, steps = tuple(rest), steps + chunk.count
        self.count_back(problem, steps, bool(cotangents))
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


def _detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)

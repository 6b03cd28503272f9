"""A compiled solve from the host's side: the graphs of one F and scheme, their record, and the way back over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.graphs import adaptive, backward, fixed
from odenet.compiled.guarded import Guarded
from odenet.compiled.lowering import backend
from odenet.compiled.record import ONE_THREAD, Chunk, Solves, Walked, answers, inside
from odenet.compiled.report import RefusalError
from odenet.compiled.scope import JUMPS, Leaves, check_modules
from odenet.solvers.problem import Problem

MOST_CONSTANTS = 256
BOTH = (0, 1)


class Graphs(Solves):
    """The graphs of one kind of solve.

    Args:
        problem: a solve of that kind.
    """

    takes_pieces = True

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

        Raises:
            RefusalError: the graphs do not hold for such a problem.
        """
        if len(problem.functions) > problem.weights.pieces:
            raise RefusalError(JUMPS)
        check_modules(problem, keep)
        return (self._adaptive if problem.scheme.adaptive else self._fixed)(problem, keep)

    def _adaptive(self, problem: Problem, keep: bool) -> Walked | None:
        scheme, x, device = problem.scheme, problem.x0.detach().contiguous(), problem.x0.device
        times = self._constant(tuple(inside(problem)), device)
        outputs = x.new_empty(len(times), *x.shape)
        capacity = self.room(x.numel() * x.element_size() if keep else 0)
        going = self._constant((0.0, problem.t0, scheme.first_step or 0.0, 1.0, 1.0, 0.0, 0.0, 0.0), device)
        k, chunks, sizes, entered, count, buffers = x, list[Chunk](), list[float](), 0, 0, None
        for piece, (start, landings) in enumerate(zip(problem.starts(), problem.landings(), strict=True)):
            entered, fresh = entered + (start != landings[-1]), True
            for landing in landings if start != landings[-1] else ():
                numbers = self._constant(
                    (landing, problem.direction, *scheme.tolerances, scheme.h_min, scheme.h_max, problem.resolution,
                     scheme.max_steps, capacity, keep, landings[-1]), device,
                )  # fmt: skip
                t = math.nan
                while t != landing:
                    if buffers is None:
                        buffers, count, going = self._record(x, capacity, keep), 0, going.clone()
                        going[0] = 0.0
                    (ts, hs, xs), first = buffers, count
                    self._take_any((0, x, k, times, ts, hs), (BOTH, xs, outputs))
                    at, x, k = self._forward(
                        problem.functions[piece], numbers, going, x, k, problem.args, (ts, hs, xs, times, outputs),
                        self._constant(fresh, device),
                    )  # fmt: skip
                    n, t, *_ = at.tolist()
                    count, fresh = int(n), False
                    if t != landing and count < capacity:
                        return None
                    sizes += hs[first:count].tolist()
                    if keep and count > first:
                        ts[count] = at[1]
                        chunks.append(Chunk(ts, hs, xs, count, first, piece))
                    going, buffers = at.clone(), buffers if t == landing else None
        *_, tries, forced, _ = going.tolist()
        nfe = self.evaluations(problem, int(tries), len(sizes), entered)
        if not self.count_steps(problem, nfe, sizes, int(tries), int(forced)):
            return None
        return Walked(chunks, answers(problem, x, outputs), times)

    @staticmethod
    def _record(x: Tensor, capacity: int, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Room for the starts and sizes of so many steps, and for the states there if they are kept."""
        ts, hs = (torch.empty(capacity + 1, dtype=torch.float64, device=x.device) for _ in range(2))
        return ts, hs, x.new_empty(capacity if keep else 2, *x.shape)

    def _fixed(self, problem: Problem, keep: bool) -> Walked | None:
        grid, x, device = self.grid(problem), problem.x0.detach().contiguous(), problem.x0.device
        scheme, count, between = problem.scheme, len(grid.spans), inside(problem)
        if scheme.max_nfe is not None and count * self.used > scheme.max_nfe:
            return None
        keep = keep or bool(between)
        xs, end = x.new_empty(max(2, count) if keep else 2, *x.shape), x
        self._take_any((0, x, grid.ends, grid.sizes), (BOTH, xs))
        for piece, first, last in grid.pieces:
            end = self._forward(
                problem.functions[piece], grid.ends, grid.sizes, self._constant(first, device),
                self._constant(last, device), end, problem.args, self._constant(keep, device), xs,
            )  # fmt: skip
        if device.type == "cpu" and not bool(torch.isfinite(end.sum())):
            return None
        self.count_fixed(problem, grid)
        chunks = [Chunk(grid.ends, grid.sizes, xs, last, first, piece) for piece, first, last in grid.pieces]
        states = answers(problem, end, (xs[grid.place[t]] for t in between))
        return Walked(chunks, states, self._constant(tuple(between), device))

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
        args, dense = problem.args, problem.scheme.adaptive
        seeds, times = a.new_empty(0, *a.shape), self._constant((), a.device)
        if cotangents:
            times = walked.inside
            seeds = torch.stack([torch.zeros_like(a) if c is None else c for c in cotangents])
        gradients = [torch.zeros_like(tensor, requires_grad=False) for tensor in leaves.tensors]
        steps = 0
        for chunk in reversed(walked.chunks):
            a, F = a.contiguous(), problem.functions[chunk.piece]
            known = leaves.names_in(F)
            names, which = tuple(known), [*known.values(), *range(len(leaves.names), len(leaves.tensors))]
            if (names, leaves.places) not in self._backs:
                graph = backward(self.tableau, names, dense)
                self._backs[names, leaves.places] = compiled(graph, self._notice, self._small)
            self._take_any((0, a, chunk.grid, chunk.sizes, times), (BOTH, chunk.states, seeds))
            a, *found = self._backs[names, leaves.places](
                F, chunk.grid, chunk.sizes, chunk.states, self._constant(chunk.first, a.device),
                self._constant(chunk.count, a.device), a, tuple(gradients[i] for i in which),
                tuple(leaves.tensors[i].detach() for i in which), _constants(args, leaves.places), leaves.places, times,
                seeds,
            )  # fmt: skip
            for i, part in zip(which, found, strict=True):
                gradients[i] = part
            steps += chunk.count - chunk.first
        self.count_back(problem, steps, steps if self.control and cotangents else 0)
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
    graph = Guarded(function, backend(notice, small))

    def call(*arguments: Any) -> Any:
        with torch.no_grad():
            return graph(*arguments)

    return call


def _constants(args: tuple[Any, ...], places: Collection[int]) -> tuple[Any, ...]:
    """F's arguments, without those at the places that are differentiated: a graph takes no tensor twice."""
    return tuple(
        None if place in places else arg.detach() if isinstance(arg, Tensor) else arg for place, arg in enumerate(args)
    )

"""Row-wise solves from the host's side: the same walk and the same way back as `odenet.compiled.walk.Graphs` has."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from ctypes import addressof
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.record import Chunk, Solves, Walked, answers, inside
from odenet.compiled.rowwise.field import Field, any_batch, called, captured
from odenet.compiled.rowwise.library import Code, Room, pointers
from odenet.compiled.rowwise.source import backward, forward
from odenet.compiled.rowwise.values import NotRowwiseError
from odenet.compiled.scope import Leaves
from odenet.compiled.walk import Graphs, own
from odenet.solvers.problem import Problem

WORTH_A_THREAD = 8  # blocks of samples for each thread
NOTHING = contextlib.nullcontext()
NO_TIMES = torch.empty(0, dtype=torch.float64)


class RowGraphs(Solves):
    """The code of one kind of solve of an F that treats every sample by itself.

    Args:
        problem: a solve of that kind.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self._found: Field | NotRowwiseError | None = None
        self._other: Graphs | None = None
        self._rows = set[int]()  # arguments of F that hold a row for each sample
        self._time = torch.zeros((), dtype=problem.x0.dtype)
        self._graph = self._made()

    def _made(self) -> Callable[..., Any]:
        return torch.compile(own(called), fullgraph=True, backend=self._capture)

    def _capture(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        return captured(graph, self._note, self._time)

    def _note(self, found: Field | NotRowwiseError) -> None:
        if found is not self._found and isinstance(found, Field):
            self._rows |= {found.graph.args[place] for place in found.graph.rows}
        self._found = found

    def field(self, problem: Problem, x: Tensor) -> Field:
        """F as it is now.

        Raises:
            NotRowwiseError: it is no function of single samples.
        """
        args, first = problem.args, self._found is None
        rows = _rows(args, len(x)) if first else self._rows
        if len(x) == 1:  # of one Dynamo would make a graph for one
            x = _twice(x)
        if rows:
            args = tuple(any_batch(_twice(arg)) if n in rows else arg for n, arg in enumerate(args))
        with torch.no_grad() if torch.is_grad_enabled() else NOTHING:
            self._graph(problem.weights.piece(0), self._time, any_batch(x), args)
            if first and rows and isinstance(self._found, NotRowwiseError):  # a size may be the batch's by chance
                self._graph = self._made()
                self._graph(problem.weights.piece(0), self._time, any_batch(x), problem.args)
        if isinstance(self._found, Field):
            return self._found
        raise self._found or NotRowwiseError("there is no graph of it")

    def walk(self, problem: Problem, keep: bool) -> Walked | None:
        """Solve, and count; None if the solve broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.
        """
        x = problem.x0.detach().contiguous()
        field, batch = self.field(problem, x), x.shape[0]
        code = self._walk_code(field, x)
        inputs, end = field.tensors(), torch.empty_like(x)
        room = Room.take(code, x, _threads(batch, code.lanes), inputs)
        room.call.x0, room.call.x1, room.call.keep = x.data_ptr(), end.data_ptr(), keep
        shape = -(-batch // code.lanes), x.numel() // batch, code.lanes
        walked = (self._adaptive if self.control else self._fixed)(problem, room, x, end, shape)
        room.leave()
        return walked

    def _adaptive(self, problem: Problem, room: Room, x: Tensor, end: Tensor, shape: tuple[int, ...]) -> Walked | None:
        t1, call, between, times, outputs = problem.t1, room.call, inside(problem), NO_TIMES, ()
        if between:
            times, outputs = torch.tensor(between, dtype=torch.float64), x.new_empty(len(between), *x.shape)
            call.times, call.at_times = times.data_ptr(), outputs.data_ptr()
        call.outputs = len(outputs)
        self._tell(problem, room)
        keep = call.keep
        capacity = self.room(math.prod(shape) * x.element_size() if keep else 0)
        call.capacity, chunks, sizes = capacity, [], []
        while True:
            if keep:
                record, xs = torch.empty(2, capacity + 1, dtype=torch.float64), x.new_empty(capacity, *shape)
                call.ts, call.xs = record.data_ptr(), xs.data_ptr()
                call.hs = call.ts + record.element_size() * (capacity + 1)
            else:
                call.ts, call.hs = room.steps(capacity)  # nobody looks at the grid
            call.n = 0
            room.code.walk(call)
            count = int(call.n)
            if call.t != t1 and count < capacity:
                return None
            if keep:
                sizes += record[1, :count].tolist()
                record[0, count] = call.t
                chunks.append(BlockChunk(record[0], record[1], xs, count, x.shape))
            else:
                sizes += room.sizes(count)
            if call.t == t1:
                break
            call.fresh = 0
        if not self.count_adaptive(problem, sizes, int(call.tries), int(call.forced)):
            return None
        return Walked(chunks, answers(problem, end, outputs), times)

    @staticmethod
    def _tell(problem: Problem, room: Room) -> None:
        """How the walk is to go, and that it begins."""
        scheme, call, told = problem.scheme, room.call, (problem.scheme, problem.t0, problem.t1)
        if not (room.told and room.told[0] is scheme and room.told[1:] == told[1:]):
            room.told, (call.rtol, call.atol) = told, scheme.tolerances
            call.t1, call.sign, call.resolution = problem.t1, problem.direction, problem.resolution
            call.h_min, call.h_max, call.max_steps = scheme.h_min, scheme.h_max, scheme.max_steps
        call.t, call.h, call.e1, call.e2, call.fresh = problem.t0, scheme.first_step or 0.0, 1.0, 1.0, 1
        call.tries = call.forced = call.bad = 0.0

    def _fixed(self, problem: Problem, room: Room, x: Tensor, end: Tensor, shape: tuple[int, ...]) -> Walked | None:
        call = room.call
        grid, between = self.grid(problem), inside(problem)
        count, most = len(grid.spans), problem.scheme.max_nfe
        if most is not None and count * self.used > most:
            return None
        call.keep = bool(call.keep or between)
        xs = x.new_empty(count if call.keep else 0, *shape)
        call.ts, call.hs, call.xs, call.count = grid.ends.data_ptr(), grid.sizes.data_ptr(), xs.data_ptr(), count
        room.code.walk(call)
        if not bool(torch.isfinite(end.sum())):
            return None
        self.count_fixed(problem, grid)
        chunk = BlockChunk(grid.ends, grid.sizes, xs, count, x.shape)
        states = answers(problem, end, (chunk.state(grid.place[t]) for t in between))
        return Walked([chunk], states, torch.tensor(between, dtype=torch.float64) if between else NO_TIMES)

    def back(
        self, problem: Problem, walked: Walked, leaves: Leaves, a: Tensor, cotangents: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As `Graphs.back`."""
        x = problem.x0.detach()
        field = self.field(problem, x.contiguous())
        wanted = field.wanted(leaves)
        numbers = sorted(set(wanted.values()))
        code = self._back_code(field, x, tuple(numbers))
        if code is None:
            return self._back_as_a_whole(problem, walked, leaves, a, cotangents)
        a = a.detach().clone(memory_format=torch.contiguous_format)
        inputs = field.tensors()
        room = Room.take(code, x, _threads(len(x), code.lanes), inputs)
        parts = [torch.empty_like(inputs[number]) for number in numbers]
        found_places, call = pointers(parts), room.call
        call.x1, call.gradients, call.outputs = a.data_ptr(), addressof(found_places), 0
        given = NO_TIMES
        if cotangents:
            given = torch.stack([torch.zeros_like(a) if c is None else c for c in cotangents])
            call.times, call.at_times, call.outputs = walked.inside.data_ptr(), given.data_ptr(), len(cotangents)
        steps, totals = 0, parts
        for chunk in reversed(walked.chunks):
            assert isinstance(chunk, BlockChunk)
            call.ts, call.hs, call.xs = chunk.grid.data_ptr(), chunk.sizes.data_ptr(), chunk.blocks.data_ptr()
            call.count = chunk.count
            code.walk(call)
            more = [part.clone() for part in parts] if len(walked.chunks) > 1 else parts
            totals = more if steps == 0 else [t + m for t, m in zip(totals, more, strict=True)]
            steps += chunk.count
        room.leave()
        found = dict(zip(numbers, totals, strict=True))
        self.count_back(problem, steps, bool(cotangents))
        return a, *field.gradients(found, wanted, leaves)

    def _back_as_a_whole(self, problem: Problem, walked: Walked, leaves: Leaves, *more: Any) -> tuple[Tensor, ...]:
        """The way back over the same steps where the gradient couples the samples."""
        if self._other is None:
            self._other = Graphs(problem)
        before = self._other.compilations
        gradients = self._other.back(problem, walked, leaves, *more)
        self.compilations += self._other.compilations - before
        return gradients

    def _walk_code(self, field: Field, x: Tensor) -> Code:
        if field.walk is None:
            source = forward(field.graph.forward(), field.sizes(), self.tableau, self.control)
            field.walk = self._code(source, "walk_adaptive" if self.control else "walk_fixed", x)
        return field.walk

    def _back_code(self, field: Field, x: Tensor, wanted: tuple[int, ...]) -> Code | None:
        if wanted not in field.backs:
            try:
                program = field.graph.joint([field.graph.given[number] for number in wanted])
                source = backward(program, field.sizes(), wanted, self.tableau)
                field.backs[wanted] = self._code(source, "walk_back", x)
            except NotRowwiseError:
                field.backs[wanted] = None
        return field.backs[wanted]

    def _code(self, source: str, name: str, x: Tensor) -> Code:
        self.compilations += 1
        return Code.of(source, name, x.dtype)


class BlockChunk(Chunk):
    """A part of the accepted grid whose states lie in blocks of lanes.

    Args:
        grid: ends of the steps.
        sizes: of the steps, signed.
        blocks: states at their starts, (steps, blocks, elements, lanes).
        count: number of steps.
        shape: of a state.
    """

    def __init__(self, grid: Tensor, sizes: Tensor, blocks: Tensor, count: int, shape: torch.Size):
        self.grid, self.sizes, self.blocks, self.count, self.shape = grid, sizes, blocks, count, shape

    @property
    def states(self) -> Tensor:  # type: ignore[override]
        """The states, (steps, *shape)."""
        rows = self.blocks[: self.count].transpose(2, 3).flatten(1, 2)[:, : self.shape[0]]
        return rows.reshape(self.count, *self.shape)

    def state(self, number: int) -> Tensor:
        """One of them."""
        return self.blocks[number].transpose(1, 2).flatten(0, 1)[: self.shape[0]].reshape(self.shape)


def _rows(args: tuple[Any, ...], batch: int) -> set[int]:
    """Which arguments of F may hold a row for each sample."""
    fits = [isinstance(arg, Tensor) and arg.dim() > 0 and len(arg) == batch > 1 for arg in args]
    return {n for n, fit in enumerate(fits) if fit}


def _twice(x: Any) -> Any:
    """Two samples of one."""
    if not isinstance(x, Tensor) or x.dim() == 0:
        return x
    return x.detach().expand(2, *x.shape[1:]).contiguous() if len(x) == 1 else x.detach()


def _threads(batch: int, lanes: int) -> int:
    blocks = -(-batch // lanes)
    return max(1, min(torch.get_num_threads(), blocks // WORTH_A_THREAD))

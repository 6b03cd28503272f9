"""Row-wise solves from the host's side: the same walk and the same way back as `odenet.compiled.walk.Graphs` has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import addressof
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenet.compiled.guarded import Guarded
from odenet.compiled.record import Chunk, Solves, Walked, answers, inside
from odenet.compiled.rowwise.blocks import BlockChunk, KeptSteps, RowWalked
from odenet.compiled.rowwise.field import Field, Use, any_batch, called, captured, gradients, use_of
from odenet.compiled.rowwise.library import NOT_SHOWN, Code, Room, pointers
from odenet.compiled.rowwise.source import backward, forward
from odenet.compiled.rowwise.values import NotRowwiseError
from odenet.compiled.scope import Leaves
from odenet.compiled.walk import Graphs
from odenet.solvers.problem import Problem

WORTH_A_THREAD = 8  # blocks of samples for each thread
NO_TIMES = torch.empty(0, dtype=torch.float64)


class RowGraphs(Solves):
    """The code of one kind of solve of an F that treats every sample by itself.

    Args:
        problem: a solve of that kind.
    """

    takes_pieces = True

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self._seen = False  # whether there is a field yet
        self._other: Graphs | None = None
        self._rows = set[int]()  # arguments of F that hold a row for each sample
        self._time = torch.zeros((), dtype=problem.x0.dtype)
        self._graph = self._made()

    def _made(self) -> Callable[..., Any]:
        return Guarded(called, self._capture)

    def _capture(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        return captured(graph, self._note)

    def _note(self, found: Field) -> None:
        self._seen = True
        self._rows |= {found.graph.args[place] for place in found.graph.rows}

    def uses(self, problem: Problem, x: Tensor) -> list[Use]:
        """F as it is now, on every piece of depth.

        Raises:
            NotRowwiseError: it is no function of single samples.
        """
        args, first, batch = problem.args, not self._seen, x.shape[0]
        rows = _rows(args, batch) if first else self._rows
        if batch == 1:  # of one Dynamo would make a graph for one
            x = _twice(x)
        if rows:
            args = tuple(any_batch(_twice(arg)) if n in rows else arg for n, arg in enumerate(args))
        x, graph, uses = any_batch(x), self._graph, []
        for F in problem.functions:  # where gradients are enabled the graph holds F's own no_grad
            result = graph(F, self._time, x, args)
            if first and rows and isinstance(result, NotRowwiseError):  # a size may be the batch's by chance
                self._graph, args, first = (graph := self._made()), problem.args, False
                result = graph(F, self._time, x, args)
            uses.append(use_of(result))
        return uses

    def walk(self, problem: Problem, keep: bool) -> Walked | None:
        """Solve, and count; None if the solve broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.
        """
        x = problem.x0.detach().contiguous()
        uses, end = self.uses(problem, x), torch.empty_like(x)
        walked = (self._adaptive if self.control else self._fixed)(problem, uses, x, end, keep)
        return RowWalked(walked.chunks, walked.states, walked.inside, uses) if walked and keep else walked

    def _adaptive(self, problem: Problem, uses: Sequence[Use], x: Tensor, end: Tensor, keep: bool) -> Walked | None:
        between, times, outputs = inside(problem), NO_TIMES, NO_TIMES
        if between:
            times, outputs = torch.tensor(between, dtype=torch.float64), x.new_empty(len(between), *x.shape)
        chunks: list[Chunk] = []
        sizes: list[float] = []
        room, record, entered = None, None, 0
        for number, (start, landings) in enumerate(zip(problem.starts(), problem.landings(), strict=True)):
            if start == landings[-1]:
                continue
            before, room = room, self._room(uses[number], x, room)
            call = room.call
            if before is None:
                self._tell(problem, room)
                shape, capacity = self._shape(room.code, x), self.capacity
                if keep:
                    capacity = self.room(math.prod(shape) * x.element_size())
                call.x0, call.x1, call.keep, call.capacity = x.data_ptr(), end.data_ptr(), keep, capacity
                call.outputs = len(between)
                if between:
                    call.times, call.at_times = times.data_ptr(), outputs.data_ptr()
            self._enter(problem, room, number, start, landings)
            entered += 1
            while True:
                if record is None:
                    record, count = KeptSteps(x, capacity, shape) if keep else room.steps(capacity), 0
                    record.show(call)
                    call.n = 0
                first = count
                room.code.walk(call)
                count = int(call.n)
                if call.t != landings[-1] and count < capacity:
                    return None
                sizes += record.sizes(first, count)
                if isinstance(record, KeptSteps) and count > first:
                    chunks.append(record.chunk(first, count, call.t, x.shape, number))
                if call.t == landings[-1]:
                    break
                call.fresh, record = 0, None
            call.x0 = call.x1
        assert room is not None
        tries, forced = int(call.tries), int(call.forced)
        nfe = self.evaluations(problem, tries, len(sizes), entered)
        room.leave()
        if not self.count_steps(problem, nfe, sizes, tries, forced):
            return None
        return Walked(chunks, answers(problem, end, outputs if between else ()), times)

    def _room(self, use: Use, x: Tensor, before: Room | None) -> Room:
        """Where the code of F on a piece works; the room of the piece before it, if the code is the same."""
        code, inputs = self._walk_code(use.field, x), use.tensors()
        if before is not None and before.code is code:
            before.show(inputs)
            return before
        room = Room.take(code, x, _threads(x.shape[0], code.lanes), inputs)
        if before is not None:
            room.follow(before)
            before.leave()
        return room

    @staticmethod
    def _shape(code: Code, x: Tensor) -> tuple[int, ...]:
        """Blocks of lanes, elements of a sample, lanes."""
        batch = x.shape[0]
        return -(-batch // code.lanes), x.numel() // batch, code.lanes

    @staticmethod
    def _enter(problem: Problem, room: Room, number: int, start: float, landings: Sequence[float]) -> None:
        """Go on to a piece of depth."""
        shown = problem.field.shown(number) if problem.scheme.jumps else NOT_SHOWN
        room.enter(start, landings[-1], shown, landings[:-1])

    @staticmethod
    def _tell(problem: Problem, room: Room) -> None:
        """How the walk is to go, and that it begins."""
        scheme, call, told = problem.scheme, room.call, (problem.scheme, problem.t0, problem.t1)
        if not (room.told and room.told[0] is scheme and room.told[1:] == told[1:]):
            room.told, (call.rtol, call.atol) = told, scheme.tolerances
            call.sign, call.resolution = problem.direction, problem.resolution
            call.h_min, call.h_max, call.max_steps = scheme.h_min, scheme.h_max, scheme.max_steps
        call.t, call.h, call.e1, call.e2 = problem.t0, scheme.first_step or 0.0, 1.0, 1.0
        call.tries = call.forced = call.bad = 0.0

    def _fixed(self, problem: Problem, uses: Sequence[Use], x: Tensor, end: Tensor, keep: bool) -> Walked | None:
        grid, between = self.grid(problem), inside(problem)
        count, most = len(grid.spans), problem.scheme.max_nfe
        if most is not None and count * self.used > most:
            return None
        room, keep, ends = None, keep or bool(between), problem.pieces()
        shape: tuple[int, ...] = ()
        for number, first, last in grid.pieces:
            before, room = room, self._room(uses[number], x, room)
            call = room.call
            if before is None:
                shape = self._shape(room.code, x)
                xs = x.new_empty(count if keep else 0, *shape)
                call.x0, call.x1, call.keep, call.xs = x.data_ptr(), end.data_ptr(), keep, xs.data_ptr()
                call.ts, call.hs = grid.ends.data_ptr(), grid.sizes.data_ptr()
            self._enter(problem, room, number, ends[number][0], ends[number][1:])
            call.first, call.count = first, last
            room.code.walk(call)
            call.x0 = call.x1
        assert room is not None
        room.leave()
        if not bool(torch.isfinite(end.sum())):
            return None
        self.count_fixed(problem, grid)
        chunks = [
            BlockChunk(grid.ends, grid.sizes, xs, last, x.shape, first, number) for number, first, last in grid.pieces
        ]
        states = answers(problem, end, (chunks[0].state(grid.place[t]) for t in between))
        return Walked(chunks, states, torch.tensor(between, dtype=torch.float64) if between else NO_TIMES)  # type: ignore[arg-type]

    def back(
        self, problem: Problem, walked: RowWalked, leaves: Leaves, a: Tensor, cotangents: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As `Graphs.back`."""
        x = problem.x0.detach()
        ways = [self._way_back(use, leaves, x) for use in walked.uses]
        if any(way.code is None for way in ways):
            return self._back_as_a_whole(problem, walked, leaves, a, cotangents)
        a = a.detach().clone(memory_format=torch.contiguous_format)
        given = torch.stack([torch.zeros_like(a) if c is None else c for c in cotangents]) if cotangents else NO_TIMES
        steps, dense, found, ends = 0, 0, dict[int, Tensor](), problem.pieces()
        for chunk in reversed(walked.chunks):
            assert isinstance(chunk, BlockChunk)
            code, wanted, numbers, inputs = ways[chunk.piece]
            room = Room.take(code, x, _threads(x.shape[0], code.lanes), inputs)
            parts = {number: torch.empty_like(inputs[number]) for number in numbers}
            places, call = pointers(list(parts.values())), room.call
            call.x1, call.gradients, call.outputs = a.data_ptr(), addressof(places), len(cotangents)
            if cotangents:
                call.times, call.at_times = walked.inside.data_ptr(), given.data_ptr()
            self._enter(problem, room, chunk.piece, ends[chunk.piece][0], ends[chunk.piece][1:])
            call.ts, call.hs, call.xs = chunk.grid.data_ptr(), chunk.sizes.data_ptr(), chunk.blocks.data_ptr()
            call.first, call.count = chunk.first, chunk.count
            code.walk(call)
            room.leave()
            for leaf, number in wanted.items():
                found[leaf] = found[leaf] + parts[number] if leaf in found else parts[number]
            steps += chunk.count - chunk.first
            dense += 0 if self.control is None else chunk.passing(walked.inside, len(cotangents))
        self.count_back(problem, steps, dense)
        return a, *gradients(found, leaves)

    def _way_back(self, use: Use, leaves: Leaves, x: Tensor) -> _Way:
        wanted = use.wanted(leaves)
        numbers = tuple(sorted(set(wanted.values())))
        return _Way(self._back_code(use.field, x, numbers), wanted, numbers, use.tensors())

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
            source = forward(field.graph.forward(one_time=True), field.sizes(), self.tableau, self.control)
            field.walk = self._code(source, "walk_adaptive" if self.control else "walk_fixed", x)
        return field.walk

    def _back_code(self, field: Field, x: Tensor, wanted: tuple[int, ...]) -> Code | None:
        if wanted not in field.backs:
            try:
                program = field.graph.joint([field.graph.given[number] for number in wanted], one_time=True)
                source = backward(program, field.sizes(), wanted, self.tableau)
                field.backs[wanted] = self._code(source, "walk_back", x)
            except NotRowwiseError:
                field.backs[wanted] = None
        return field.backs[wanted]

    def _code(self, source: str, name: str, x: Tensor) -> Code:
        self.compilations += 1
        return Code.of(source, name, x.dtype)


class _Way(NamedTuple):
    """The way back over a piece of depth.

    Attributes:
        code: that walks it; None where the gradient couples the samples.
        wanted: for each tensor that a gradient is wanted for its number among the inputs.
        numbers: the inputs whose gradients the code finds.
        inputs: of F beside state and time.
    """

    code: Any
    wanted: dict[int, int]
    numbers: tuple[int, ...]
    inputs: list[Tensor]


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

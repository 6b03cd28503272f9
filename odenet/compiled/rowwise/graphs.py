"""Row-wise solves from the host's side: the same walk and the same way back as `odenet.compiled.walk.Graphs` has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import addressof
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.wrap import wrap

from odenet.compiled.record import Chunk, Solves, Walked, answers, inside
from odenet.compiled.rowwise.capture import Captured
from odenet.compiled.rowwise.library import Code, Walk, pointers
from odenet.compiled.rowwise.source import backward, forward, lanes_for, widths
from odenet.compiled.rowwise.values import NotRowwiseError
from odenet.compiled.scope import Leaves
from odenet.compiled.walk import Graphs, own
from odenet.solvers.problem import Problem

WORTH_A_THREAD = 2  # blocks of samples for each thread
NO_TIMES = torch.empty(0, dtype=torch.float64)


@dataclass
class Field:
    """What was made of one graph of F.

    Attributes:
        graph: F as it was captured.
        walks: code of the walk, by samples of a block.
        backs: code of the way back, by the inputs that are differentiated and samples of a block; None where the
            gradient couples the samples.
        flat: the inputs of the latest call.
    """

    graph: Captured
    walks: dict[int, Code] = field(default_factory=dict)
    backs: dict[tuple[int, ...], dict[int, Code] | None] = field(default_factory=dict)
    flat: tuple[Any, ...] = ()

    def tensors(self) -> list[Tensor]:
        """The inputs beside state and time."""
        given = [self.flat[place] for place in self.graph.given]
        return [x if x.is_contiguous() else x.detach().contiguous() for x in given]

    def wanted(self, leaves: Sequence[Tensor]) -> dict[int, int]:
        """For each tensor that F uses its place among the inputs."""
        places = {id(self.flat[place]): place for place in self.graph.given}
        return {i: places[id(leaf)] for i, leaf in enumerate(leaves) if id(leaf) in places}


class RowGraphs(Solves):
    """The code of one kind of solve of an F that treats every sample by itself.

    Args:
        problem: a solve of that kind.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self._found: Field | NotRowwiseError | None = None
        self._other: Graphs | None = None
        self._time, self._marked = torch.zeros((), dtype=problem.x0.dtype), False
        self._graph = torch.compile(own(_field), fullgraph=True, backend=self._capture)

    def _capture(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        try:
            found: Field | NotRowwiseError = Field(Captured.of(graph))
        except NotRowwiseError as refusal:
            found = refusal

        def reached(*flat: Any) -> Any:
            self._found = found
            if isinstance(found, Field):
                found.flat = flat
            return (self._time,)  # nobody looks at it

        return reached

    def field(self, problem: Problem, x: Tensor) -> Field:
        """F as it is now.

        Raises:
            NotRowwiseError: it is no function of single samples.
        """
        if len(x) == 1:
            x = x.expand(2, *x.shape[1:]).contiguous()  # of one Dynamo would make a graph for one
        if not self._marked:
            torch._dynamo.maybe_mark_dynamic(x, 0)
            self._marked = True
        with torch.no_grad():
            self._graph(problem.weights.piece(0), self._time, x, problem.args)
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
        call = Walk(batch=batch, threads=_threads(batch, code.lanes), keep=keep)
        inputs = field.tensors()
        places = pointers(inputs)
        work = x.new_empty(code.work_size(batch, call.threads))
        end = torch.empty_like(x)
        call.inputs, call.x0, call.x1, call.work = addressof(places), x.data_ptr(), end.data_ptr(), work.data_ptr()
        shape = -(-batch // code.lanes), x.numel() // batch, code.lanes
        return (self._adaptive if self.control else self._fixed)(problem, call, code, x, end, shape)

    def _adaptive(
        self, problem: Problem, call: Walk, code: Code, x: Tensor, end: Tensor, shape: tuple[int, ...]
    ) -> Walked | None:
        scheme, t1, between = problem.scheme, problem.t1, inside(problem)
        times, outputs = NO_TIMES, x[:0]
        if between:
            times, outputs = torch.tensor(between, dtype=torch.float64), x.new_empty(len(between), *x.shape)
            call.times, call.at_times, call.outputs = times.data_ptr(), outputs.data_ptr(), len(between)
        rtol, atol = scheme.tolerances
        call.t1, call.sign, call.rtol, call.atol = t1, problem.direction, rtol, atol
        call.h_min, call.h_max, call.max_steps = scheme.h_min, scheme.h_max, scheme.max_steps
        call.resolution = problem.resolution
        call.t, call.h, call.e1, call.e2, call.fresh = problem.t0, scheme.first_step or 0.0, 1.0, 1.0, 1
        capacity = self.room(math.prod(shape) * x.element_size() if call.keep else 0)
        chunks, sizes, xs = [], [], x
        while True:
            record = torch.empty(2, capacity + 1, dtype=torch.float64)
            call.ts, call.hs = record.data_ptr(), record.data_ptr() + record.element_size() * (capacity + 1)
            if call.keep:
                xs = x.new_empty(capacity, *shape)
                call.xs = xs.data_ptr()
            call.capacity, call.n = capacity, 0
            code.walk(call)
            count = int(call.n)
            if call.t != t1 and count < capacity:
                return None
            sizes += record[1, :count].tolist()
            if call.keep:
                record[0, count] = call.t
                chunks.append(BlockChunk(record[0], record[1], xs, count, x.shape))
            if call.t == t1:
                break
            call.fresh = 0
        if not self.count_adaptive(problem, sizes, int(call.tries), int(call.forced)):
            return None
        return Walked(chunks, answers(problem, end, outputs), times)

    def _fixed(
        self, problem: Problem, call: Walk, code: Code, x: Tensor, end: Tensor, shape: tuple[int, ...]
    ) -> Walked | None:
        grid, between = self.grid(problem), inside(problem)
        count, most = len(grid.spans), problem.scheme.max_nfe
        if most is not None and count * self.used > most:
            return None
        call.keep = bool(call.keep or between)
        xs = x.new_empty(count if call.keep else 0, *shape)
        call.ts, call.hs, call.xs, call.count = grid.ends.data_ptr(), grid.sizes.data_ptr(), xs.data_ptr(), count
        code.walk(call)
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
        wanted = field.wanted(leaves.tensors)
        places = sorted(set(wanted.values()))
        code = self._back_code(field, x, tuple(places))
        if code is None:
            return self._back_as_a_whole(problem, walked, leaves, a, cotangents)
        a = a.detach().clone(memory_format=torch.contiguous_format)
        inputs = field.tensors()
        call = Walk(batch=len(x), threads=_threads(len(x), code.lanes))
        work = x.new_empty(code.work_size(len(x), call.threads))
        parts = [torch.empty_like(field.flat[place], memory_format=torch.contiguous_format) for place in places]
        given_places, found_places = pointers(inputs), pointers(parts)
        call.inputs, call.x1, call.work = addressof(given_places), a.data_ptr(), work.data_ptr()
        call.gradients = addressof(found_places)
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
        found = dict(zip(places, totals, strict=True))
        self.count_back(problem, steps, bool(cotangents))
        return a, *(found[wanted[i]] if i in wanted else torch.zeros_like(t) for i, t in enumerate(leaves.tensors))

    def _back_as_a_whole(self, problem: Problem, walked: Walked, leaves: Leaves, *more: Any) -> tuple[Tensor, ...]:
        """The way back over the same steps where the gradient couples the samples."""
        if self._other is None:
            self._other = Graphs(problem)
        before = self._other.compilations
        gradients = self._other.back(problem, walked, leaves, *more)
        self.compilations += self._other.compilations - before
        return gradients

    def _walk_code(self, field: Field, x: Tensor) -> Code:
        if not field.walks:
            source = forward(field.graph.forward(), self.tableau, self.control)
            field.walks = self._code(source, "walk_adaptive" if self.control else "walk_fixed", x)
        return field.walks[lanes_for(len(x), x.dtype)]

    def _back_code(self, field: Field, x: Tensor, wanted: tuple[int, ...]) -> Code | None:
        if wanted not in field.backs:
            try:
                source = backward(field.graph.joint(wanted), self.tableau)
                field.backs[wanted] = self._code(source, "walk_back", x)
            except NotRowwiseError:
                field.backs[wanted] = None
        codes = field.backs[wanted]
        return None if codes is None else codes[lanes_for(len(x), x.dtype)]

    def _code(self, source: str, name: str, x: Tensor) -> dict[int, Code]:
        self.compilations += 1
        return Code.of(source, name, widths(x.dtype))


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


def _field(F: Any, t: Tensor, x: Tensor, args: tuple[Any, ...]) -> Any:
    # Dynamo lets nothing that is wrapped change what lies outside: F is captured once, and would do so once
    return wrap(lambda t, x: F(t, x, *args), t, x)


def _threads(batch: int, lanes: int) -> int:
    blocks = -(-batch // lanes)
    return max(1, min(torch.get_num_threads(), blocks // WORTH_A_THREAD))

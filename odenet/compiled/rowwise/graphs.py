"""Row-wise solves from the host's side: the same walk and the same way back as `odenet.compiled.walk.Graphs` has."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from ctypes import addressof
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.rowwise.capture import Captured
from odenet.compiled.rowwise.library import function, library
from odenet.compiled.rowwise.source import backward, forward, lanes_for
from odenet.compiled.rowwise.values import NotRowwiseError
from odenet.compiled.scope import Leaves
from odenet.compiled.walk import FIRST_RECORD, LARGEST_RECORD, Chunk, Graphs, Walked, own
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.problem import Problem
from odenet.solvers.registry import solvers

SETTINGS = ("t1", "sign", "rtol", "atol", "h_min", "h_max", "resolution", "max_steps")
PROGRESS = ("n", "t", "h", "e1", "e2", "tries", "forced", "bad")
COUNTS = ("batch", "threads", "capacity", "keep", "fresh", "count", "outputs")
PLACES = ("inputs", "x0", "x1", "ts", "hs", "xs", "times", "at_times", "work", "gradients")
ONE_THREAD, WORTH_A_THREAD = 2**12, 2  # blocks of samples for each thread


class Walk(ctypes.Structure):
    """`Walk` of walk.h."""

    _fields_ = [
        *((name, ctypes.c_double) for name in SETTINGS),
        *((name, ctypes.c_double) for name in PROGRESS),
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in PLACES),
    ]


@dataclass
class Code:
    """Functions of one library."""

    walk: Any
    work_size: Any
    lanes: int


@dataclass
class Field:
    """What was made of one graph of F.

    Attributes:
        captured: the graph.
        walks: code of the walk, by samples of a block.
        backs: code of the way back, by what is differentiated as well.
        flat: the inputs of the latest call.
        refusal: why nothing can be made of it.
    """

    captured: Captured | None
    walks: dict[int, Code] = field(default_factory=dict)
    backs: dict[Any, Code] = field(default_factory=dict)
    flat: tuple[Any, ...] = ()
    refusal: NotRowwiseError | None = None

    @property
    def graph(self) -> Captured:
        """The graph of an F that is a function of single samples.

        Raises:
            NotRowwiseError: it is none.
        """
        if self.captured is None or self.refusal is not None:
            raise self.refusal or NotRowwiseError("nothing was captured")
        return self.captured

    def tensors(self) -> list[Tensor]:
        """The inputs beside state and time."""
        given = [self.flat[place] for place in self.graph.given]
        return [x if x.is_contiguous() else x.detach().contiguous() for x in given]

    def wanted(self, leaves: Sequence[Tensor]) -> dict[int, int]:
        """For each tensor that F uses its place among the inputs."""
        places = {id(self.flat[place]): place for place in self.graph.given}
        return {i: places[id(leaf)] for i, leaf in enumerate(leaves) if id(leaf) in places}


class RowGraphs:
    """The code of one kind of solve of an F that treats every sample by itself.

    Args:
        problem: a solve of that kind.

    Attributes:
        compilations: how many libraries have been made or loaded so far.
    """

    def __init__(self, problem: Problem):
        scheme = problem.scheme
        stepper = solvers[scheme.solver]
        assert isinstance(stepper, ExplicitRungeKutta)
        self.tableau, self.compilations, self.capacity = stepper.tableau, 0, FIRST_RECORD
        self.control = None
        if scheme.adaptive:
            assert stepper.error_order is not None
            self.control = scheme.step_controller, stepper.error_order
        self.used = self.tableau.used
        self._field: Field | None = None
        self._other: Graphs | None = None
        self._grid: tuple[Any, ...] | None = None
        self._time = torch.zeros((), dtype=problem.x0.dtype)
        self._marked, self._result = False, problem.x0
        self._graph = torch.compile(own(_field), fullgraph=True, backend=self._capture)

    def _capture(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        try:
            found = Field(Captured.of(graph))
        except NotRowwiseError as refusal:
            found = Field(None, refusal=refusal)

        def reached(*flat: Any) -> Any:
            found.flat, self._field = flat, found
            return (self._result,)

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
            self._marked, self._result = True, x
        with torch.no_grad():
            self._graph(problem.weights.piece(0), self._time, x, problem.args)
        assert self._field is not None
        if self._field.refusal is not None:
            raise self._field.refusal
        return self._field

    def walk(self, problem: Problem, keep: bool) -> Walked | None:
        """Solve, and count; None if the solve broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.
        """
        x = problem.x0.detach().contiguous()
        field, batch = self.field(problem, x), x.shape[0]
        code = self._walk_code(field, x)
        call = Walk(batch=batch, threads=_threads(batch, code.lanes))
        inputs = field.tensors()
        places = _pointers(inputs)
        work = x.new_empty(code.work_size(batch, call.threads))
        end = torch.empty_like(x)
        call.inputs, call.x0, call.x1, call.work = addressof(places), x.data_ptr(), end.data_ptr(), work.data_ptr()
        shape = -(-batch // code.lanes), x.numel() // batch, code.lanes
        call.keep = keep
        return (self._adaptive if self.control else self._fixed)(problem, call, code, x, end, shape)

    def _adaptive(
        self, problem: Problem, call: Walk, code: Code, x: Tensor, end: Tensor, shape: tuple[int, ...]
    ) -> Walked | None:
        scheme, t0, t1 = problem.scheme, problem.t0, problem.t1
        inside = [t for t in problem.ts if t not in (t0, t1)]
        times, outputs = NO_TIMES, x
        if inside:
            times, outputs = torch.tensor(inside, dtype=torch.float64), x.new_empty(len(inside), *x.shape)
            call.times, call.at_times, call.outputs = times.data_ptr(), outputs.data_ptr(), len(inside)
        rtol, atol = scheme.tolerances
        call.t1, call.sign, call.rtol, call.atol = t1, problem.direction, rtol, atol
        call.h_min, call.h_max, call.max_steps = scheme.h_min, scheme.h_max, scheme.max_steps
        call.resolution = 16 * EPS * max(abs(t0), abs(t1))
        call.t, call.h, call.e1, call.e2, call.fresh = t0, scheme.first_step or 0.0, 1.0, 1.0, 1
        capacity = self.capacity
        if call.keep:
            capacity = max(8, min(capacity, LARGEST_RECORD // (math.prod(shape) * x.element_size())))
        chunks, sizes, xs = [], [], x
        while True:
            record = torch.empty(2, capacity + 1, dtype=torch.float64)
            call.ts = place = record.data_ptr()
            call.hs = place + 8 * (capacity + 1)
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
        accepted, tries = len(sizes), int(call.tries)
        s, fsal = self.tableau.stages, self.tableau.fsal
        nfe = (2 if scheme.first_step is None else 1) + tries * (s - 1 if fsal else s)
        if scheme.max_nfe is not None and nfe > scheme.max_nfe:
            return None
        stats = problem.stats
        stats.nfe, stats.accepted, stats.rejected = nfe, accepted, tries - accepted
        stats.forced, stats.h = int(call.forced), [abs(h) for h in sizes]
        self.capacity = max(self.capacity, 2 ** math.ceil(math.log2(accepted + 1)))
        rest = iter(outputs) if inside else iter(())
        states = [problem.x0 if t == t0 else end if t == t1 else next(rest) for t in problem.ts]
        return Walked(chunks, states, times)

    def _fixed(
        self, problem: Problem, call: Walk, code: Code, x: Tensor, end: Tensor, shape: tuple[int, ...]
    ) -> Walked | None:
        spans = problem.spans()
        if problem.scheme.max_nfe is not None and len(spans) * self.used > problem.scheme.max_nfe:
            return None
        key = tuple(spans)
        if self._grid is None or self._grid[0] != key:
            ends = [spans[0].t, *(span.t_next for span in spans)]
            sizes = [span.h for span in spans]
            grid, hs = (torch.tensor(numbers, dtype=torch.float64) for numbers in (ends, sizes))
            self._grid = key, grid, hs, {t: i for i, t in enumerate(ends)}, [abs(h) for h in sizes]
        _, grid, sizes, places, lengths = self._grid
        inside = [t for t in problem.ts if t not in (problem.t0, problem.t1)]
        call.keep = bool(call.keep) or bool(inside)
        xs = x.new_empty(len(spans) if call.keep else 0, *shape)
        call.ts, call.hs, call.xs, call.count = grid.data_ptr(), sizes.data_ptr(), xs.data_ptr(), len(spans)
        code.walk(call)
        if not bool(torch.isfinite(end.sum())):
            return None
        stats = problem.stats
        stats.nfe, stats.accepted, stats.h = len(spans) * self.used, len(spans), list(lengths)
        chunk = BlockChunk(grid, sizes, xs, len(spans), x.shape)
        states = [
            problem.x0 if t == problem.t0 else end if t == problem.t1 else chunk.state(places[t]) for t in problem.ts
        ]
        return Walked([chunk], states, torch.tensor(inside, dtype=torch.float64))

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
        x = problem.x0.detach()
        field = self.field(problem, x.contiguous())
        a = a.detach().clone(memory_format=torch.contiguous_format)
        inputs = field.tensors()
        wanted = field.wanted(leaves.tensors)
        places = sorted(set(wanted.values()))
        try:
            code = self._back_code(field, x, tuple(places))
        except NotRowwiseError:  # the gradient couples the samples; its steps are the same
            self._other = self._other or Graphs(problem, x.numel() <= ONE_THREAD)
            self.compilations += 1
            return self._other.back(problem, walked, leaves, a, cotangents)
        call = Walk(batch=len(x), threads=_threads(len(x), code.lanes))
        work = x.new_empty(code.work_size(len(x), call.threads))
        parts = [torch.empty_like(field.flat[place], memory_format=torch.contiguous_format) for place in places]
        given_places, found_places = _pointers(inputs), _pointers(parts)
        call.inputs, call.x1, call.work = addressof(given_places), a.data_ptr(), work.data_ptr()
        call.gradients = addressof(found_places)
        given = torch.empty(0)
        if cotangents:
            given = torch.stack([torch.zeros_like(a) if c is None else c for c in cotangents])
            call.times, call.at_times, call.outputs = walked.inside.data_ptr(), given.data_ptr(), len(cotangents)
        steps, totals = 0, parts
        for chunk in reversed(walked.chunks):
            call.ts, call.hs, call.xs = chunk.grid.data_ptr(), chunk.sizes.data_ptr(), chunk.blocks.data_ptr()  # type: ignore[attr-defined]
            call.count = chunk.count
            code.walk(call)
            more = [part.clone() for part in parts] if len(walked.chunks) > 1 else parts
            totals = more if steps == 0 else [t + m for t, m in zip(totals, more, strict=True)]
            steps += chunk.count
        found = dict(zip(places, totals, strict=True))
        used = self.tableau.stages if self.control and cotangents else self.used
        stats = problem.stats
        stats.nfe_backward += used * steps
        stats.vjps += used * steps
        stats.steps_backward += steps
        return a, *(found[wanted[i]] if i in wanted else torch.zeros_like(t) for i, t in enumerate(leaves.tensors))

    def _walk_code(self, field: Field, x: Tensor) -> Code:
        lanes = lanes_for(len(x), x.dtype)
        if lanes not in field.walks:
            source = forward(field.graph.forward(), self.tableau, lanes, self.control)
            field.walks[lanes] = self._code(source, "walk_adaptive" if self.control else "walk_fixed", lanes)
        return field.walks[lanes]

    def _back_code(self, field: Field, x: Tensor, wanted: tuple[int, ...]) -> Code:
        lanes = lanes_for(len(x), x.dtype)
        key = lanes, wanted
        if key not in field.backs:
            source = backward(field.graph.joint(wanted), self.tableau, lanes)
            field.backs[key] = self._code(source, "walk_back", lanes)
        return field.backs[key]

    def _code(self, source: str, name: str, lanes: int) -> Code:
        found = library(source)
        self.compilations += 1
        size = function(found, "work_size", ctypes.c_int64, ctypes.c_int64, result=ctypes.c_int64)
        return Code(function(found, name, ctypes.POINTER(Walk)), size, lanes)


EPS, NO_TIMES = torch.finfo(torch.float64).eps, torch.empty(0, dtype=torch.float64)


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
    return F(t, x, *args)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    """Where tensors lie; whoever hands over its address keeps it."""
    return (ctypes.c_void_p * max(1, len(tensors)))(*[t.data_ptr() for t in tensors])


def _threads(batch: int, lanes: int) -> int:
    blocks = -(-batch // lanes)
    return max(1, min(torch.get_num_threads(), blocks // WORTH_A_THREAD))

"""Row-wise solves in which every sample has its own steps, from the host's side: as `per_sample.walk.SampleGraphs`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from ctypes import addressof
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenet.compiled.guarded import Guarded
from odenet.compiled.per_sample.walk import SampleGraphs
from odenet.compiled.record import LARGEST_RECORD, Solves
from odenet.compiled.report import RefusalError
from odenet.compiled.rowwise.field import Field, Use, any_batch, called, captured, gradients, use_of
from odenet.compiled.rowwise.library import library, pointers
from odenet.compiled.rowwise.sample_counts import count, count_back
from odenet.compiled.rowwise.sample_record import (
    ACCEPTED,
    BEGINS,
    F64,
    FIELDS,
    GOES_ON,
    LAST,
    RENEWED,
    SEGMENT,
    TRIES,
    UPCOMING,
    Record,
    Samples,
    Stretch,
    Walked,
)
from odenet.compiled.rowwise.sample_source import backward, forward, lanes_of
from odenet.compiled.rowwise.sample_way import Given, Way
from odenet.compiled.rowwise.values import NotRowwiseError
from odenet.compiled.scope import Leaves
from odenet.solvers.per_sample import SampleProblem

WORTH_A_THREAD = 4  # blocks of samples for each thread
COUPLED = "its gradient couples the samples, and is then compiled for one piece of depth with adaptive steps only"


class SampleRows(Solves):
    """The code of one kind of solve, with steps of each sample's own, of an F that treats every sample by itself.

    Args:
        problem: a solve of that kind.
    """

    takes_all = True  # pieces of depth, stops, jumps and given steps

    def __init__(self, problem: SampleProblem):
        super().__init__(problem)  # pyright: ignore[reportArgumentType]
        self._other: SampleGraphs | None = None
        self._graphs: dict[frozenset[int], Callable[..., Any]] = {}

    def _capture(self, rows: frozenset[int], graph: Any, inputs: Any) -> Callable[..., Any]:
        return captured(graph, lambda found: None, rows)

    def uses(self, problem: SampleProblem) -> list[Use]:
        """F as it is now, on every piece of weights.

        Raises:
            NotRowwiseError: it is no function of single samples.
        """
        field, x, t, args = problem.field, problem.x0.detach(), problem.t0, problem.field.args
        rows = field.own_args
        if len(x) == 1:  # of one Dynamo would make a graph for one
            both = torch.zeros(2, dtype=torch.long)
            x, t, args = x[both], t[both], field.rows_of(both)
        if rows:
            args = tuple(pytree.tree_map(_constant, arg) if n in rows else arg for n, arg in enumerate(args))
        if rows not in self._graphs:
            self._graphs[rows] = Guarded(called, partial(self._capture, rows))
        if problem.weights.varies:  # in lanes a time that all samples share is each one's own, as are the weights then
            t = t.new_zeros(())
        graph, t, x = self._graphs[rows], any_batch(t.to(x.dtype)), any_batch(x)
        # where gradients are enabled the graph holds F's own no_grad
        return [use_of(graph(F, t, x, args)) for F in problem.functions]

    def walk(self, problem: SampleProblem, keep: bool) -> Walked | None:
        """Solve, and count; None if a sample broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.
        """
        uses = self.uses(problem)
        with torch.no_grad():
            return self._walk(problem, uses, keep)

    def _walk(self, problem: SampleProblem, uses: list[Use], keep: bool) -> Walked | None:
        x0, batch = problem.x0.detach(), len(problem.x0)
        way, order = Way.of(problem), problem.walking.clone()
        x = x0.clone(memory_format=torch.contiguous_format)
        slope, at = torch.empty_like(x), torch.zeros(len(FIELDS), batch, dtype=F64)
        at[0] = problem.t0
        at[LAST] = -1
        times, outputs = problem.t0.new_empty(0, batch), x[:0]
        if problem.ts is not None and bool(((problem.ts != problem.t0) & (problem.ts != problem.t1)).any()):
            times, outputs = problem.ts, x.new_zeros(len(problem.ts), *x.shape)
        parts, base, padded = list[Record](), 0, 0
        pieces, tries, record = list[Stretch](), list[Tensor](), None
        grids = None if problem.grids is None else Given.of(problem, order)
        for use, until in zip(uses, way.until, strict=True):
            code = self._walk_code(use.field)
            call, held = self._call(problem, use, order, code, way)
            if grids is not None:
                grids.show(call)
            call.x, call.slope, call.at = x.data_ptr(), slope.data_ptr(), at.data_ptr()
            call.outputs, call.times, call.at_times = len(times), times.data_ptr(), outputs.data_ptr()
            call.until, call.keep, call.fresh = until.data_ptr(), keep, RENEWED if pieces else BEGINS
            pieces.append(Stretch(use, base))
            tries.append(at[TRIES].clone())
            while True:
                record = self._record(problem, call, x, keep)
                record.show(call)
                call.base = base
                code[0](call)
                if call.failed:
                    return None
                record.count, padded = int(call.used), padded + int(call.padded)
                parts.append(record)
                base, call.fresh = base + record.count, GOES_ON
                if bool((at[SEGMENT] == until).all()):
                    break
            del held
        record = Record.joined(parts)
        if self.control is None and not bool(torch.isfinite(x.sum())):
            return None
        if not count(problem, self.tableau, at, record, tries, padded):
            return None
        self.capacity = max(self.capacity, math.ceil(1.25 * record.count / max(1, batch)))
        return Walked(record, at, x, times, outputs, pieces)

    def _call(
        self, problem: SampleProblem, use: Use, order: Tensor, code: tuple[Any, Any], way: Way
    ) -> tuple[Samples, list[Any]]:
        """What C++ is told of a solve, and what has to be kept while it runs."""
        scheme, moving = problem.scheme, len(order)
        blocks = moving // lanes_of(problem.x0.dtype)
        threads = max(1, min(torch.get_num_threads(), blocks // WORTH_A_THREAD))
        given = use.tensors()
        places = pointers(given)
        work = problem.x0.new_empty(code[1](threads))
        rtol, atol = scheme.tolerances if scheme.adaptive else (0.0, 0.0)
        call = Samples(
            rtol=rtol, atol=atol, h_min=scheme.h_min, h_max=scheme.h_max, max_steps=scheme.max_steps,
            first_step=scheme.first_step or 0.0, batch=len(problem.x0), moving=moving, threads=threads,
            inputs=len(given),
        )  # fmt: skip
        call.given, call.order, call.work = addressof(places), order.data_ptr(), work.data_ptr()
        way.show(call)
        return call, [given, places, order, work]

    def _record(self, problem: SampleProblem, call: Samples, x: Tensor, keep: bool) -> Record:
        """Room for the next steps."""
        capacity, given = self.capacity * len(x), problem.grids is not None
        if keep:
            capacity = min(capacity, LARGEST_RECORD // (x[0].numel() * x.element_size()))
        if problem.grids is not None:
            capacity = len(x) * (problem.grids.times.shape[1] - 1)
        capacity = max(capacity, lanes_of(x.dtype) * call.threads)
        xs = x.new_empty(capacity if keep else 0, *x.shape[1:])
        steps, inner = torch.empty(4, capacity, dtype=torch.long), capacity if given and call.outputs else 0
        return Record(steps, torch.empty(3, capacity, dtype=F64), torch.zeros(inner, dtype=torch.uint8), xs, 0)

    @torch.no_grad()
    def back(
        self, problem: SampleProblem, walked: Walked, leaves: Leaves, a: Tensor, cotangents: Tensor | None
    ) -> tuple[Tensor, ...]:
        """As `SampleGraphs.back`."""
        ways = [piece.use.wanted(leaves) for piece in walked.pieces]
        codes = [
            self._back_code(piece.use.field, tuple(sorted(set(wanted.values()))))
            for piece, wanted in zip(walked.pieces, ways, strict=True)
        ]
        way = Way.of(problem)
        if any(code is None for code in codes):
            if not way.whole or self.control is None:
                raise RefusalError(COUPLED)
            if self._other is None:
                self._other = SampleGraphs(problem)
            return self._other.back(problem, walked, leaves, a, cotangents)  # pyright: ignore[reportArgumentType]
        accepted = walked.at[ACCEPTED].long()
        order = problem.walking[accepted[problem.walking].argsort(descending=True, stable=True)]
        a, at = a.detach().clone(memory_format=torch.contiguous_format), walked.at.clone()
        at[UPCOMING] = len(walked.times) - 1
        record, found = walked.record, dict[int, Tensor]()
        inner = torch.zeros(0 if cotangents is None else record.count, dtype=torch.uint8)
        seeds = None if cotangents is None else cotangents.contiguous()
        for (use, first), wanted, code in reversed(list(zip(walked.pieces, ways, codes, strict=True))):
            assert code is not None
            call, held = self._call(problem, use, order[at[LAST, order] >= first], code, way)
            call.a, call.at, call.first = a.data_ptr(), at.data_ptr(), first
            if seeds is not None:
                call.outputs, call.times, call.seeds = len(walked.times), walked.times.data_ptr(), seeds.data_ptr()
            record.show(call)
            call.inner = inner.data_ptr()
            parts = {n: torch.zeros_like(held[0][n], requires_grad=False) for n in sorted(set(wanted.values()))}
            places = pointers(list(parts.values()))
            call.gradients = addressof(places)
            code[0](call)
            for leaf, number in wanted.items():
                found[leaf] = found[leaf] + parts[number] if leaf in found else parts[number]
        count_back(problem, self.tableau, accepted, record, inner.bool())
        return a, *gradients(found, leaves)

    def _walk_code(self, field: Field) -> tuple[Any, Any]:
        if field.walk is None:
            source = forward(field.graph.forward(), field.sizes(), self.tableau, self.control)
            field.walk = self._code(source, "samples_walk")
        return field.walk

    def _back_code(self, field: Field, wanted: tuple[int, ...]) -> tuple[Any, Any] | None:
        if wanted not in field.backs:
            graph = field.graph
            try:
                program = graph.joint([graph.given[number] for number in wanted])
                field.backs[wanted] = self._code(backward(program, field.sizes(), wanted, self.tableau), "samples_back")
            except NotRowwiseError:
                field.backs[wanted] = None
        return field.backs[wanted]

    def _code(self, source: str, name: str) -> tuple[Any, Any]:
        self.compilations += 1
        found = library(source)
        walk, size = found[name], found["samples_size"]
        walk.argtypes, walk.restype = (ctypes.POINTER(Samples),), None
        size.argtypes, size.restype = (ctypes.c_int64,), ctypes.c_int64
        return walk, size


def _constant(x: Any) -> Any:
    return any_batch(x.detach()) if isinstance(x, Tensor) else x

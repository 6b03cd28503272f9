"""Solves by captured steps from the host's side: which capture serves a solve, the walk, and the way back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.captured.adaptive import AdaptiveWalk, HostChunk
from odenet.compiled.captured.arithmetic import FORCED, TRIES, Arithmetic
from odenet.compiled.captured.field import Arguments, Autocast, Field
from odenet.compiled.captured.fixed import FixedWalk
from odenet.compiled.captured.identity import Identity, layout
from odenet.compiled.captured.proof import proven
from odenet.compiled.captured.pullback import WayBack
from odenet.compiled.captured.replay import NotCapturedError
from odenet.compiled.record import LARGEST_RECORD, Chunk, Grid, Solves, Walked, answers, inside
from odenet.compiled.report import log
from odenet.compiled.scope import Leaves, check_modules
from odenet.solvers.problem import Problem

MOST_CAPTURES, MOST_FORGOTTEN = 4, 16
LONGEST_GRID = 2**14
F64 = torch.float64


@dataclass
class CapturedWalked(Walked):
    """What a captured walk did.

    Attributes:
        autocast: under which F ran.
    """

    autocast: Autocast


class CapturedGraphs(Solves):
    """The captures of one kind of solve: a few of each sort, for the shapes and the F that came last.

    Args:
        problem: a solve of that kind.
        fused: whether Triton kernels do what lies between evaluations of F; left out, on CUDA.
    """

    takes_autocast = True

    def __init__(self, problem: Problem, fused: bool | None = None):
        super().__init__(problem)
        if fused is None:
            fused = problem.x0.device.type == "cuda" and torch.cuda.is_available()
        self._arithmetic = self._fused(problem.x0) if fused else Arithmetic(self.tableau, self.control)
        self._walks: OrderedDict[Hashable, Any] = OrderedDict()
        self._backs: OrderedDict[Hashable, WayBack] = OrderedDict()
        self._forgotten = 0

    def walk(self, problem: Problem, keep: bool) -> CapturedWalked | None:
        """Solve, and count; None if the solve broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.
        """
        check_modules(problem, keep)
        autocast = Autocast.now(problem.x0.device)
        if autocast.enabled:
            problem.field  # noqa: B018 that remembers the autocast for whoever walks the steps again
        walk = self._adaptive if problem.scheme.adaptive else self._fixed
        try:
            return walk(problem, keep, autocast)
        except Exception as error:
            if not self._without_kernels(error):
                raise
            return walk(problem, keep, autocast)

    def _fused(self, x0: Tensor) -> Arithmetic:
        """The arithmetic in Triton kernels, where there is Triton and they compute what they should."""
        try:
            from odenet.compiled.captured.fused import Fused
        except ImportError:
            return Arithmetic(self.tableau, self.control)
        try:
            wrong = proven(self.tableau, self.control, x0.device, x0.dtype)
        except Exception as error:  # as where there is no C compiler
            log.warning("odenet captures steps without kernels of its own: %s", error)
            return Arithmetic(self.tableau, self.control)
        if wrong is not None:
            log.warning(
                "odenet captures steps without kernels of its own: on %s they give other values for %s than PyTorch",
                x0.device, wrong,
            )  # fmt: skip
            return Arithmetic(self.tableau, self.control)
        return Fused(self.tableau, self.control, x0.device)

    def _without_kernels(self, error: Exception) -> bool:
        """Go on without the Triton kernels, if they may be what failed, as they do without a C compiler."""
        if isinstance(error, NotCapturedError) or type(self._arithmetic) is Arithmetic:
            return False
        log.warning("odenet captures steps without kernels of its own: %s", error)
        self._arithmetic = Arithmetic(self.tableau, self.control)
        self._walks.clear()
        self._backs.clear()
        return True

    def _adaptive(self, problem: Problem, keep: bool, autocast: Autocast) -> CapturedWalked | None:
        walk, new = self.adaptive_walk(problem, keep, autocast)
        with walk.field.of_problem(problem):
            if new is not None:
                walk.capture()
            walked = walk()
        if new is not None:
            new.check()
        if walked is None:
            return None
        header, chunks = walked
        between, sizes = inside(problem), [h for chunk in chunks for h in chunk.lengths]
        tries = int(header[TRIES])
        if not self._count(problem, sizes, tries, int(header[FORCED]), walk.launched):
            return None
        states = answers(problem, walk.x.clone(), walk.outputs.clone().unbind() if between else ())
        return CapturedWalked(chunks, states, torch.tensor(between, dtype=F64), autocast)

    def adaptive_walk(self, problem: Problem, keep: bool, autocast: Autocast) -> tuple[AdaptiveWalk, _Before | None]:
        """The walk of an adaptive solve, ready to begin, and what F was made of before, if it has not been captured."""
        scheme, x0, between = problem.scheme, problem.x0.detach(), inside(problem)
        rows = self.room(x0.numel() * x0.element_size() if keep else 0)

        def make() -> AdaptiveWalk:
            field = Field(problem, autocast)
            return AdaptiveWalk(field, self._arithmetic, x0, rows, keep, scheme.first_step is None, len(between))

        walk, new = self._found(self._walks, problem, (autocast, rows, keep, len(between)), make)
        numbers = [problem.t1, problem.direction, *scheme.tolerances, scheme.h_min, scheme.h_max, problem.resolution,
                   scheme.max_steps]  # fmt: skip
        walk.load(x0, list(map(float, numbers)), problem.t0, scheme.first_step or 1.0, between)
        return walk, new

    def _count(self, problem: Problem, sizes: list[float], tries: int, forced: int, launched: int) -> bool:
        """Count an adaptive solve as if it had ended in time; what was evaluated beyond that apart.

        A method without FSAL evaluates F where a step begins after every trial, and needs it after accepted ones.
        """
        starts, nfe = 2 if problem.scheme.first_step is None else 1, self.evaluations(problem, tries, len(sizes))
        problem.stats.nfe_masked = starts + launched * self.tried - nfe
        return self.count_steps(problem, nfe, sizes, tries, forced)

    def _fixed(self, problem: Problem, keep: bool, autocast: Autocast) -> CapturedWalked | None:
        grid, x0, between = self.grid(problem), problem.x0.detach(), inside(problem)
        count, most = len(grid.spans), problem.scheme.max_nfe
        if most is not None and count * self.used > most:
            return None
        room = max(8, LARGEST_RECORD // (x0.numel() * x0.element_size())) if keep else LONGEST_GRID
        rows = min(room, 2 ** (count - 1).bit_length())

        def make() -> FixedWalk:
            return FixedWalk(Field(problem, autocast), self._arithmetic, x0, rows, keep)

        walk, new = self._found(self._walks, problem, (autocast, rows, keep), make)
        walk.x.copy_(x0)
        ends, sizes = [span.t for span in grid.spans] + [grid.spans[-1].t_next], [span.h for span in grid.spans]
        places = [grid.place[t] for t in between]
        states, chunks, end = [], [], x0
        with walk.field.of_problem(problem):
            if new is not None:
                walk.load(ends[: rows + 1], sizes[:rows])
                walk.capture()
            for first in range(0, count, rows):
                last = min(first + rows, count)
                walk.load(ends[first : last + 1], sizes[first:last])
                *found, end = walk(last - first, [p - first for p in places if first < p <= last])
                states += found
                held = walk.xs[: last - first].clone() if keep else walk.xs
                chunks.append(HostChunk.of(ends[first : last + 1], sizes[first:last], held))
        if new is not None:
            new.check()
        if x0.device.type == "cpu" and not bool(torch.isfinite(end.sum())):
            return None
        self.count_fixed(problem, grid)
        return CapturedWalked(chunks, answers(problem, end, states), torch.tensor(between, dtype=F64), autocast)

    def back(
        self, problem: Problem, walked: CapturedWalked, leaves: Leaves, a: Tensor, cotangents: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Cotangents of x0 and of the leaves; what it takes is counted.

        Args:
            problem: what was solved.
            walked: its record.
            leaves: what F uses.
            a: cotangent of x(t1).
            cotangents: of the answers between t0 and t1.
        """
        try:
            return self._back(problem, walked, leaves, a, cotangents)
        except Exception as error:
            if not self._without_kernels(error):
                raise
            return self._back(problem, walked, leaves, a, cotangents)

    def _back(
        self, problem: Problem, walked: CapturedWalked, leaves: Leaves, a: Tensor, cotangents: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        autocast = walked.autocast

        def make() -> WayBack:
            names = tuple(leaves.names_in(problem.functions[0]))
            return WayBack(Field(problem, autocast), self._arithmetic, problem.x0.detach(), names, leaves)

        way, _ = self._found(self._backs, problem, (autocast, leaves.names, leaves.places), make)
        given = zip(inside(problem), cotangents, strict=True) if cotangents else ()
        due = [(t, c) for t, c in given if c is not None]
        stages = 0
        with way.field.of_problem(problem):
            way.begin(a)
            for chunk in reversed(walked.chunks):
                stages += self._back_over(chunk, way, problem.direction, due)
        steps = sum(chunk.count for chunk in walked.chunks)
        stats = problem.stats
        stats.nfe_backward += stages
        stats.vjps += stages
        stats.steps_backward += steps
        return way.a.clone(), *(gradient.clone() for gradient in way.gradients)

    @staticmethod
    def _back_over(chunk: Chunk, way: WayBack, sign: float, due: list[tuple[float, Tensor]]) -> int:
        """Back over a part of the record, with the cotangents of the answers in it; how often F was evaluated."""
        assert isinstance(chunk, HostChunk)
        ends, sizes, stages = chunk.ends, chunk.lengths, 0
        spans = torch.stack([chunk.grid[:-1], chunk.grid[1:], chunk.sizes], 1).to(way.a.device, non_blocking=True)
        for i in reversed(range(chunk.count)):
            while due and due[-1][0] == ends[i + 1]:
                way.a.add_(due.pop()[1])
            within = []
            while due and sign * (due[-1][0] - ends[i]) > 0:
                within.append(due.pop())
            stages += way(chunk.states[i], spans[i], ends[i], sizes[i], within)
        return stages

    def grid(self, problem: Problem) -> Grid:
        """The steps of a fixed-step problem, which the host keeps."""
        spans = problem.spans()
        if self._grid is None or self._grid.spans != spans:
            self._grid = Grid.of(spans, torch.device("cpu"))
        return self._grid

    def _found(
        self, captures: OrderedDict[Hashable, Any], problem: Problem, settings: tuple[Any, ...], make: Callable[[], Any]
    ) -> tuple[Any, _Before | None]:
        """The captures that serve a solve, and what F was made of before, if they are new.

        Raises:
            NotCapturedError: there would be no end of capturing, or no saying whether a capture serves.
        """
        x0, F = problem.x0, problem.functions[0]
        identity = Identity(F)
        stream = torch.cuda.current_stream(x0.device).cuda_stream if _on_cuda(x0) else 0
        key = (identity.key, layout(x0), Arguments.key(problem.args), settings, stream)
        try:
            found = captures.get(key)
        except TypeError as error:
            raise NotCapturedError("an argument of F cannot be compared with that of another call") from error
        if found is not None:
            captures.move_to_end(key)
            return found, None
        if len(captures) == MOST_CAPTURES:
            self._forgotten += 1
            if self._forgotten > MOST_FORGOTTEN:
                raise NotCapturedError("its shapes or the values that F holds change from call to call")
            captures.popitem(last=False)
        self.compilations += 1
        captures[key] = made = make()
        return made, _Before(F, identity)


class _Before:
    """What F was made of before it was captured."""

    def __init__(self, F: Any, identity: Identity):
        self.F, self.identity, self.versions = F, identity, identity.versions()

    def check(self) -> None:
        """Raise `NotCapturedError` if that is no longer so: then every evaluation counts, which replays leave out."""
        if Identity(self.F).key != self.identity.key or self.identity.versions() != self.versions:
            raise NotCapturedError("it changes what it holds whenever it is evaluated")


def _on_cuda(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.cuda.is_available()

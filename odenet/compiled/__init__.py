"""Compiled solves: a whole solve as one graph, its exact gradient as another; eager where that cannot be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from odenet.compiled.record import ONE_THREAD
from odenet.compiled.report import CompileWarning, tell, uncaptured, warn
from odenet.compiled.rowwise import NotRowwiseError
from odenet.compiled.scope import SEVERAL, Leaves, compiler_missing, of_F, of_problem, of_scheme
from odenet.errors import ResidualError
from odenet.solvers.problem import Problem
from odenet.solvers.scheme import Scheme
from odenet.solvers.solution import Solution
from odenet.solvers.states import Packed

if TYPE_CHECKING:
    from odenet.compiled.walk import Graphs
    from odenet.solvers.per_sample import SampleProblem
    from odenet.solvers.stats import Stats

ENOUGH, SMALL = 2000, 2**16
TREE = "the state is a tree of tensors; put them in one, (batch, ...), and take it apart in F"


@dataclass
class Entry:
    """What is known of the solves of one F by one scheme.

    Attributes:
        calls: how many there were.
        evaluations: calls of F in those of them that have ended, where each sample had its own steps.
        last: the counts of the latest of these.
        fits: the latest scheme that can be compiled, as far as the scheme goes.
        graphs: the compiled solve, once there is one.
        refusal: why there is none, once that is known.
        told: the reasons that the user was told.
    """

    calls: int = 0
    evaluations: int = 0
    last: Stats | None = None
    fits: Scheme | None = None
    graphs: Any = None
    refusal: str | None = None
    told: set[str] = field(default_factory=set)


_declined: set[str] = set()
_entries: WeakKeyDictionary[Any, dict[Any, Entry]] = WeakKeyDictionary()


def solve(problem: Problem) -> Solution | None:
    """Solve `problem` by a compiled graph, or return None if it is to be walked eagerly.

    With `compile="auto"` that is so for the first 2,000 solves of an F by a scheme, and for states of more than 65,536
    elements, where the evaluations of F take most of the time.
    """
    scheme = problem.scheme
    if scheme.compile is False:
        return None
    entry = entry_of(problem)
    if entry is None:
        return None
    entry.calls += 1
    if scheme.compile == "auto" and (entry.calls <= ENOUGH or problem.x0.numel() > SMALL):
        return None
    if entry.refusal is not None:
        return refused(problem, entry, entry.refusal)
    refusal = None if entry.fits is scheme else of_scheme(scheme)
    entry.fits = scheme if refusal is None else None
    graphs = graphs_of(problem, entry, refusal or of_problem(problem), _graphs)
    if graphs is None:
        return None
    if not graphs.takes_pieces and (len(problem.functions) > 1 or scheme.stops):
        return refused(problem, entry, SEVERAL, lasting=False)
    try:
        try:
            return _solved(problem, entry, graphs)
        except NotRowwiseError:
            entry.graphs = _whole(problem)
            return _solved(problem, entry, entry.graphs)
    except ResidualError:
        raise
    except Exception as error:  # errors of F itself come again, eagerly
        return refused(problem, entry, uncaptured(error))


def _graphs(problem: Problem) -> Any:
    """Captured steps on a GPU; row by row on a CPU, and what cannot be so is found out by the first walk."""
    if problem.x0.device.type == "cpu":
        from odenet.compiled.rowwise.graphs import RowGraphs

        return RowGraphs(problem)
    from odenet.compiled.captured import CapturedGraphs

    return CapturedGraphs(problem)


def _whole(problem: Problem) -> Graphs:
    """The batch as a whole."""
    from odenet.compiled.walk import Graphs

    return Graphs(problem)


def graphs_of(problem: Any, entry: Entry, refusal: str | None, make: Callable[[Any], Any]) -> Any:
    """The graphs of a kind of solve, which `make` makes of its first problem; None if it is to be walked eagerly.

    Args:
        problem: what is to be solved.
        entry: what is known of such solves.
        refusal: why this one is not compiled, or None.
        make: the graphs of a problem.
    """
    if refusal is not None:
        return refused(problem, entry, refusal, lasting=False)
    if entry.graphs is None:
        refusal = compiler_missing() if problem.x0.device.type == "cpu" else None
        if refusal is not None:
            return refused(problem, entry, refusal)
        entry.graphs = make(problem)
    if not entry.graphs.takes_autocast and torch.is_autocast_enabled(problem.x0.device.type):
        return refused(problem, entry, "autocast is on", lasting=False)
    return entry.graphs


def entry_of(problem: Problem | SampleProblem) -> Entry | None:
    """What is known of the solves of this F by this scheme; None if nothing can be remembered of F, or its state is a
    tree."""
    weights = problem.weights
    if isinstance(weights, Packed):  # made anew for every solve
        return decline(problem.scheme, TREE)
    F = weights if weights.varies else weights.piece(0)
    try:
        entries = _entries.get(F)
        if entries is None:
            entries = _entries[F] = {}
    except TypeError:
        return refused(problem, Entry(), "F cannot be remembered (it is neither a module nor a plain function)")
    kind = _kind(problem, F)
    entry = entries.get(kind)
    if entry is None:
        entry = entries[kind] = Entry()
    return entry


def _kind(problem: Problem | SampleProblem, F: Any) -> tuple[Any, ...]:
    scheme = problem.scheme
    training = F.training if isinstance(F, nn.Module) else None
    small = problem.x0.numel() <= ONE_THREAD
    return (scheme.solver, scheme.adaptive, scheme.controller, scheme.first_step is None, training, problem.x0.dtype,
            scheme.per_sample, small, problem.weights.pieces)  # fmt: skip


def _solved(problem: Problem, entry: Entry, graphs: Graphs) -> Solution | None:
    walked, leaves = walked_by(problem, entry, graphs)
    if walked is None:
        return None
    if leaves is None:
        return Solution(walked.states, problem.ts, problem.stats)
    from odenet.compiled.gradient import differentiable

    return Solution(differentiable(problem, graphs, walked, leaves), problem.ts, problem.stats)


def walked_by(problem: Any, entry: Entry, graphs: Any, t: Tensor | None = None) -> tuple[Any, Leaves | None]:
    """What the graphs did, None if they are not to be used or the solve broke down; and what a gradient is wanted for.

    Args:
        problem: what is to be solved.
        entry: what is known of such solves.
        graphs: of this kind of solve.
        t: the time as F is shown it, if not t0.
    """
    begin, before, leaves = time.perf_counter(), graphs.compilations, Leaves((), (), [])
    wanted = differentiated = torch.is_grad_enabled()
    if wanted:
        leaves = Leaves.of(problem.weights, problem.args)
        wanted = problem.x0.requires_grad or bool(leaves.tensors)
    unseen = before == 0 or (differentiated and not graphs.observed)
    if unseen and (refusal := of_F(problem, leaves.tensors, t)) is not None:
        return refused(problem, entry, refusal), None
    walked = graphs.walk(problem, keep=wanted)
    if graphs.compilations != before:
        if not unseen and (refusal := of_F(problem, leaves.tensors, t)) is not None:
            vars(problem.stats).update(vars(type(problem.stats)()))  # the eager walk counts anew
            return refused(problem, entry, refusal), None
        tell("a solve", problem, time.perf_counter() - begin)
        unseen = True
    if unseen:
        graphs.observed = differentiated
    return walked, leaves if wanted else None


def decline(scheme: Scheme, refusal: str) -> None:
    """Say why a walk that is never compiled is not, if it was asked for."""
    if scheme.compile is True and refusal not in _declined:
        _declined.add(refusal)
        warn(refusal)


def refused(problem: Problem | SampleProblem, entry: Entry, refusal: str, lasting: bool = True) -> None:
    """Walk eagerly; whoever asked for more is told why, each reason once."""
    entry.refusal = refusal if lasting else None
    if problem.scheme.compile is True and refusal not in entry.told:
        entry.told.add(refusal)
        warn(refusal)


__all__ = ["CompileWarning", "decline", "solve"]

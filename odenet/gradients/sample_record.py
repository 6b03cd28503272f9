"""What a forward pass leaves behind where every sample had its own steps: rounds of them, and the tensors F uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.gradients.inputs import Inputs
from odenet.gradients.pullback import Evaluation, Pullback
from odenet.solvers.per_sample import SampleProblem
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.outputs import Interior, Step, Take
from odenet.solvers.per_sample.rows import put, select
from odenet.solvers.per_sample.spans import Spans
from odenet.solvers.stepper import NOTHING, Memory, Trial


@dataclass(slots=True)
class Round:
    """Accepted steps of some of the samples; without their states, which the way back is handed.

    Attributes:
        samples: whose, on the host.
        segments: the segment of its way that each was on.
        times: (t, t_next), and the sizes of the steps where they are not the difference, on the host.
        fresh: which of them begin with a memory that is made there; None if the method has none.
        takes: the values of the answer that come from them.
        memories: number of tensors in the memory that they were given.
        left: number of tensors in the memory that they left.
        memory_times: the numbers that belong to the memory that they were given.
    """

    samples: Tensor
    segments: Tensor
    times: tuple[Tensor, ...]
    fresh: Tensor | None
    takes: Sequence[Take]
    memories: int = 0
    left: int = 0
    memory_times: tuple[float, ...] = ()

    @property
    def inside(self) -> list[Take]:
        """The values of the answer inside the steps, and not at their ends."""
        return [take for take in self.takes if take.t is not None]

    @property
    def begin(self) -> Tensor:
        """Which rows begin with a memory that is made there, on the host."""
        return torch.zeros(0, dtype=torch.long) if self.fresh is None else self.fresh.nonzero()[:, 0]


class SampleRecord:
    """Rounds of accepted steps, states in which samples ended without one, and the tensors that F uses.

    Args:
        problem: what was solved.
        inputs: the tensors that F uses.

    Attributes:
        rounds: rounds of steps, or what was taken from states in which samples broke down.
        start: samples and number of values of the answer that are x0 itself.
    """

    def __init__(self, problem: SampleProblem, inputs: Inputs):
        self.problem, self.inputs, self.stepper = problem, inputs, problem.stepper
        self.batch = len(problem.x0)
        self.rounds: list[Round | Sequence[Take]] = []
        self.start: tuple[Tensor, int] = torch.zeros(0, dtype=torch.long), 0

    def add(self, step: Step | None, takes: Sequence[Take]) -> None:
        """Add accepted steps, or states in which samples ended without one."""
        if step is None:
            self.rounds.append(takes)
            return
        given, left = step.trial.given, step.trial.memory.tensors
        fresh = step.fresh if given.tensors else None
        numbers = len(given.tensors), len(left), given.times
        self.rounds.append(Round(step.f.samples, step.f.segments, step.spans.host, fresh, takes, *numbers))

    def where(self, done: Round, x: Tensor) -> Any:
        """Where the steps of a round go, with F for their samples as its `piece`; for states like x."""
        t, t_next, *step = done.times
        return Spans(t, t_next, x, *step, piece=self.problem.field.on(done.samples, done.segments))

    def redo(self, done: Round, x: Tensor, memory: Sequence[Tensor]) -> tuple[Trial, list[tuple[Take, Tensor]]]:
        """The steps of a round again: where they go, and the values inside them.

        Args:
            done: the round.
            x: the states that they started from, (rows, ...).
            memory: what the steps before them left; of no account for those that begin with a memory made there.
        """
        span = self.where(done, x)
        given, rows, f = NOTHING, done.begin, span.piece
        if done.fresh is not None:
            index = rows.to(x.device)
            begins = x if len(rows) == len(x) else x.index_select(0, index)
            if len(rows):
                made = self.stepper.start(f.select(rows), span.t.index_select(0, index), begins)
                memory = put(memory, index, made.tensors, len(x))
            given = Memory(tuple(memory), done.memory_times)
        trial = self.stepper.step(f, span, x, given)
        return trial, inside(self, done.inside, trial)

    @torch.no_grad()
    def advance(self, state: Sequence[Tensor], number: int, until: int) -> list[Tensor]:
        """The states and memories (batch, ...) before round `until`, from those before round `number`."""
        state = list(state)
        for done in self.rounds[number:until]:
            if isinstance(done, Round):
                index = done.samples.to(state[0].device)
                x, *memory = select(state, index)
                trial, _ = self.redo(done, x, memory[: done.memories])
                state = put(state, index, [trial.x_next, *trial.memory.tensors], self.batch)
                self.problem.stats.steps_backward += 1
        return state


def rows_before(state: list[Tensor], done: Round) -> list[Tensor]:
    """What the steps of a round started from, among the states of all samples."""
    rows = select(state, done.samples.to(state[0].device))[: 1 + done.memories]
    return [*rows, *[torch.zeros_like(rows[0])] * (1 + done.memories - len(rows))]


def inside(record: SampleRecord, takes: Sequence[Take], trial: Trial) -> list[tuple[Take, Tensor]]:
    """The values of an answer inside some steps, by the method's dense output."""
    if not takes:
        return []
    span: Any = trial.span
    step = Step(span.piece, trial, torch.zeros(len(trial.x), dtype=torch.bool))
    interior = Interior(record.stepper, step, torch.cat([take.rows for take in takes]).unique())
    return [(take, interior.at(take.rows, take.t)) for take in takes if take.t is not None]


def of_take(cotangent: Tensor, take: Take) -> Tensor:
    """The part of the values' cotangent that belongs to a take."""
    return cotangent[take.first : take.first + len(take.rows)]


def at_ends(done: Round | Sequence[Take], cotangent: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples with the cotangents of what was taken where they ended, or at the ends of the steps of a round."""
    if not isinstance(done, Round):
        yield from ((take.rows, of_take(cotangent, take)) for take in done)
        return
    for take in done.takes:
        if take.t is None:
            yield done.samples[take.rows], of_take(cotangent, take)


class SamplePullback(Pullback):
    """`Pullback` for rows of samples on their own pieces of depth, a piece being F for them (`Spans.piece`).

    Args:
        record: of the forward pass, or whatever has its `problem` and `inputs`.
    """

    @torch.no_grad()
    def value(self, piece: Rows, t: Any, x: Tensor) -> Tensor:
        """F(t, x) without a graph."""
        return piece(t, x)

    def evaluate(self, piece: Rows, t: Any, x: Tensor) -> Evaluation:
        """F(t, x) with its graph, to which the samples' rows of arguments belong as well."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            own = self.field.on(piece.samples, piece.segments)
            return Evaluation(own, leaf, own(t, leaf))

    def pieces(self, piece: Rows) -> Sequence[int]:
        """Those of all the rows."""
        return piece.pieces

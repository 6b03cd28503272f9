"""Checkpointed backprop where every sample had its own steps: the steps of each again, one round's graph at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.gradients.inputs import Inputs, vjp
from odenet.gradients.pullback import plus
from odenet.gradients.registry import gradients
from odenet.solvers.per_sample import SampleProblem, SampleSolution, integrate_samples
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.outputs import Interior, Step, Take
from odenet.solvers.per_sample.spans import Spans
from odenet.solvers.scheme import Scheme
from odenet.solvers.stepper import NOTHING, Memory, Trial


def check_per_sample(scheme: Scheme) -> None:
    """Raise `InputError` if the gradient method does not know steps of each sample's own."""
    able = [name for name, method in gradients.items() if hasattr(method, "solve_samples")]
    check: Any = getattr(gradients[scheme.gradient], "check_samples", None)
    if check is not None:
        return check(scheme)
    if scheme.gradient not in able:
        raise InputError(
            f"gradient={scheme.gradient!r} walks steps that all samples share; with per_sample=True use "
            f"{', '.join(map(repr, able[:-1]))} or {able[-1]!r}"
        )
    if scheme.gradient_options:
        raise InputError(
            f"with per_sample=True gradient={scheme.gradient!r} takes no gradient_options, got "
            f"{', '.join(map(str, scheme.gradient_options))}"
        )


StepBack = Callable[..., list[Tensor | None]]


@dataclass(slots=True)
class Round:
    """Accepted steps of some of the samples; without their states, which the way back is handed.

    Attributes:
        samples: whose, on the host.
        segments: the segment of its way that each was on.
        times: (t, t_next), and the sizes of the steps where they are not the difference, on the host.
        fresh: which of them begin with a memory that is made there; None if the method has none.
        takes: the values of the answer that come from them.
        memories: number of tensors in the method's memory.
    """

    samples: Tensor
    segments: Tensor
    times: tuple[Tensor, ...]
    fresh: Tensor | None
    takes: Sequence[Take]
    memories: int


class SampleRecord:
    """What a forward pass leaves behind: rounds of accepted steps, states that ended early, and the tensors F uses.

    Args:
        problem: what was solved.
        inputs: the tensors that F uses.
        step_back: the way back over the steps of a round, as `whole_step`, which is the default.
    """

    def __init__(self, problem: SampleProblem, inputs: Inputs, step_back: StepBack | None = None):
        self.step_back = step_back or whole_step
        self.problem, self.inputs, self.stepper = problem, inputs, problem.stepper
        self.rounds: list[Round | Sequence[Take]] = []
        self.kept: list[Tensor] = []
        self.start: tuple[Tensor, int] = torch.zeros(0, dtype=torch.long), 0

    def watch(self, step: Step | None, takes: Sequence[Take]) -> None:
        """Add accepted steps, or states in which samples ended without one."""
        if step is None:
            self.rounds.append(takes)
            return
        memory = step.trial.given.tensors
        fresh = step.fresh if memory else None
        self.rounds.append(Round(step.f.samples, step.f.segments, step.spans.host, fresh, takes, len(memory)))
        self.kept += [step.trial.x, *memory]

    def where(self, done: Round, x: Tensor) -> tuple[Rows, Any]:
        """F for the samples of a round, and where their steps go."""
        t, t_next, *step = done.times
        return self.problem.field.on(done.samples, done.segments), Spans(t, t_next, x, *step)

    def redo(self, number: int, x: Tensor, memory: Sequence[Tensor]) -> tuple[Trial, Rows, list[tuple[Take, Tensor]]]:
        """The steps of a round again: where they go, F for them, and the values inside them."""
        done = self.rounds[number]
        assert isinstance(done, Round)
        f, span = self.where(done, x)
        given = NOTHING
        if done.fresh is not None:
            given = Memory(tuple(memory))
            if bool(done.fresh.any()):
                rows = done.fresh.nonzero()[:, 0]
                index = rows.to(x.device)
                made = self.stepper.start(f.select(rows), span.t.index_select(0, index), x.index_select(0, index))
                pairs = zip(memory, made.tensors, strict=True)
                given = Memory(tuple(old.index_copy(0, index, new) for old, new in pairs))
        trial = self.stepper.step(f, span, x, given)
        inside = [take for take in done.takes if take.t is not None]
        if not inside:
            return trial, f, []
        rows = torch.cat([take.rows for take in inside]).unique()
        step = Step(f, trial, torch.zeros(len(done.samples), dtype=torch.bool))
        interior = Interior(self.stepper, step, rows)
        return trial, f, [(take, interior.at(take.rows, take.t)) for take in inside if take.t is not None]


def replay_samples(problem: SampleProblem, step_back: StepBack | None = None) -> SampleSolution:
    """Solve `problem` so that its states can be differentiated with one round's graph in memory.

    Each sample's gradient is that of its own accepted steps; the steps of a sample that was done are not redone for
    those that were not.
    """
    if not torch.is_grad_enabled():
        return integrate_samples(problem)
    inputs = Inputs(problem)  # pyright: ignore[reportArgumentType]
    record = SampleRecord(problem, inputs, step_back)
    problem.field.observe(inputs.observe)
    with torch.no_grad():
        solution = integrate_samples(problem, record.watch)
    problem.field.observe(None)
    kept, record.kept = record.kept, []
    if not (problem.x0.requires_grad or inputs.tensors):
        return solution
    places = solution.outputs.places
    count = solution.outputs.at_start
    record.start = (torch.cat(places)[:count] if places else record.start[0]) % max(1, len(problem.x0)), count
    values = _ReplaySamples.apply(record, kept, solution.values, problem.x0, *inputs.tensors)
    solution.values = values  # pyright: ignore[reportAttributeAccessIssue]
    return solution


class _ReplaySamples(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, record: SampleRecord, kept: list[Tensor], values: Tensor, x0: Tensor, *tensors: Tensor
    ) -> Tensor:
        ctx.record, ctx.tensors = record, tensors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x0, *tensors, *kept)
        kept.clear()
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> Any:
        record: SampleRecord = ctx.record
        x0, *saved = ctx.saved_tensors
        if cotangent is None:
            return (None,) * (4 + len(ctx.tensors))
        with record.problem.field.recompute():
            if torch.is_grad_enabled():
                return None, None, None, *differentiable_again(record, x0, ctx.tensors, cotangent)
            a, found = back(record, x0, saved[len(ctx.tensors) :], cotangent)
        return None, None, None, a, *found


def back(record: SampleRecord, x0: Tensor, kept: list[Tensor], cotangent: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients with respect to x0 and to the record's inputs, round by round from the end."""
    a, inputs, stats = torch.zeros_like(x0), record.inputs, record.problem.stats
    a_memory: list[Tensor] = []
    found: list[Tensor | None] = [None] * len(inputs.tensors)
    for number in reversed(range(len(record.rounds))):
        done = record.rounds[number]
        if not isinstance(done, Round):
            for take in done:
                a.index_add_(0, take.rows.to(a.device), of_take(cotangent, take))
            continue
        samples = done.samples.to(a.device)
        for take in done.takes:
            if take.t is None:
                a.index_add_(0, done.samples[take.rows].to(a.device), of_take(cotangent, take))
        start = [kept.pop() for _ in range(done.memories + 1)][::-1]
        a_memory = a_memory or [torch.zeros_like(x0) for _ in range(done.memories)]
        stats.steps_backward += 1
        seeds = [a.index_select(0, samples), *(part.index_select(0, samples) for part in a_memory)]
        start = [part.detach() for part in start]
        back = record.step_back(record, number, start, seeds, cotangent, found)
        for whole, part in zip([a, *a_memory], back, strict=True):
            part = torch.zeros_like(start[0]) if part is None else part
            whole.index_copy_(0, samples, part)
    samples, count = record.start
    if count:
        a.index_add_(0, samples.to(a.device), cotangent[:count])
    return a, found


def whole_step(
    record: SampleRecord,
    number: int,
    start: list[Tensor],
    seeds: list[Tensor],
    cotangent: Tensor,
    found: list[Tensor | None],
) -> list[Tensor | None]:
    """Cotangents of what the steps of a round started from, through the graph of the whole step.

    Args:
        record: of the forward pass.
        number: the round.
        start: state and memory.
        seeds: cotangents of the states and memories that the steps ended in.
        cotangent: of the values of the answer.
        found: gradients of the tensors that F uses, to be added to.
    """
    stats = record.problem.stats
    before = stats.nfe_backward
    with torch.enable_grad():
        leaves = [part.requires_grad_() for part in start]
        trial, f, inside = record.redo(number, leaves[0], leaves[1:])
    stats.vjps += stats.nfe_backward - before
    pairs = [
        *zip([trial.x_next, *trial.memory.tensors], seeds, strict=True),
        *((x, of_take(cotangent, take)) for take, x in inside),
    ]
    return pull(record, f.pieces, pairs, leaves, found)


def of_take(cotangent: Tensor, take: Take) -> Tensor:
    """The part of the values' cotangent that belongs to a take."""
    return cotangent[take.first : take.first + len(take.rows)]


def pull(
    record: Any,
    pieces: Sequence[int],
    pairs: Sequence[tuple[Tensor, Tensor]],
    leaves: Sequence[Tensor],
    found: list[Tensor | None],
) -> list[Tensor | None]:
    """Cotangents of `leaves`; those of the tensors that F uses on these pieces are added to `found`."""
    pairs = [(root, seed) for root, seed in pairs if root.requires_grad]
    inputs = record.inputs
    indices = sorted({i for piece in pieces for i in inputs.of[piece]})
    tensors = [inputs.tensors[i] for i in indices]
    roots = [root for root, _ in pairs]
    inputs.check(pieces[0], roots, *leaves, *tensors)
    grads = vjp(roots, [*leaves, *tensors], [seed for _, seed in pairs], keep=inputs.computed)
    for index, part in zip(indices, grads[len(leaves) :], strict=True):
        found[index] = plus(found[index], part)
    return list(grads[: len(leaves)])


def differentiable_again(
    record: SampleRecord, x0: Tensor, tensors: tuple[Tensor, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """The same gradients with a graph of their own, for second derivatives: all rounds again, on the tape."""
    x, memory = x0, []
    pieces: list[tuple[Tensor, Tensor]] = []
    samples, count = record.start
    if count:
        pieces.append((x0.index_select(0, samples.to(x0.device)), cotangent[:count]))
    for number, done in enumerate(record.rounds):
        if not isinstance(done, Round):
            pieces += [(x.index_select(0, take.rows.to(x.device)), of_take(cotangent, take)) for take in done]
            continue
        index = done.samples.to(x.device)
        memory = memory or [torch.zeros_like(x0) for _ in range(done.memories)]
        trial, f, inside = record.redo(number, x.index_select(0, index), [m.index_select(0, index) for m in memory])
        record.inputs.check(f.pieces[0], [trial.x_next], x, x0, *(t for p in f.pieces for t in record.inputs.piece(p)))
        pieces += [(value, of_take(cotangent, take)) for take, value in inside]
        for take in done.takes:
            if take.t is None:
                pieces.append((trial.x_next.index_select(0, take.rows.to(x.device)), of_take(cotangent, take)))
        x = x.index_copy(0, index, trial.x_next)
        memory = [m.index_copy(0, index, part) for m, part in zip(memory, trial.memory.tensors, strict=False)]
    pieces = [(value, seed) for value, seed in pieces if value.requires_grad]
    inputs = [t for t in (x0, *tensors) if t.requires_grad]
    values, seeds = [value for value, _ in pieces], [seed for _, seed in pieces]
    grads = dict(zip(map(id, inputs), vjp(values, inputs, seeds, create_graph=True), strict=True))
    return tuple(grads.get(id(t)) for t in (x0, *tensors))

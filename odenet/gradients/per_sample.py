"""The states of a solve in which every sample had its own steps, as functions of x0 and of what F uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.gradients.inputs import Inputs, vjp
from odenet.gradients.registry import gradients
from odenet.gradients.sample_record import Round, SampleRecord, at_ends, of_take
from odenet.solvers.per_sample import SampleProblem, SampleSolution, integrate_samples
from odenet.solvers.per_sample.outputs import Step, Take
from odenet.solvers.per_sample.rows import put, select
from odenet.solvers.scheme import Scheme


def check_per_sample(scheme: Scheme) -> None:
    """Raise `InputError` if the gradient method does not know steps of each sample's own."""
    able = [name for name, method in gradients.items() if hasattr(method, "solve_samples")]
    if scheme.gradient not in able:
        raise InputError(
            f"gradient={scheme.gradient!r} walks steps that all samples share; with per_sample=True use "
            f"{', '.join(map(repr, able[:-1]))} or {able[-1]!r}"
        )
    check: Any = getattr(gradients[scheme.gradient], "check_samples", None)
    if check is not None:
        check(scheme)


class SampleSweep(Protocol):
    """One way back over recorded rounds, made for one solve."""

    def keep(self, record: SampleRecord, step: Step) -> None:
        """Called with the accepted steps of every round, after they were recorded."""
        ...

    def kept(self) -> list[Tensor]:
        """Hands over, once, the tensors to be held for the backward pass."""
        ...

    def back(
        self, record: SampleRecord, x0: Tensor, kept: list[Tensor], cotangent: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients with respect to x0 and to each of the record's inputs from the cotangent of the values.

        That of values at t0 is left out of the first.
        """
        ...


def replay_samples(problem: SampleProblem, sweep: SampleSweep) -> SampleSolution:
    """Solve `problem` so that its states can be differentiated by going back over its rounds as the sweep does.

    Each sample's gradient is that of its own accepted steps; the steps of a sample that was done are not redone for
    those that were not.
    """
    if not torch.is_grad_enabled():
        return integrate_samples(problem)
    inputs = Inputs(problem)  # pyright: ignore[reportArgumentType]
    record = SampleRecord(problem, inputs)

    def watch(step: Step | None, takes: Sequence[Take]) -> None:
        record.add(step, takes)
        if step is not None:
            sweep.keep(record, step)

    problem.field.observe(inputs.observe)
    with torch.no_grad():
        solution = integrate_samples(problem, watch)
    problem.field.observe(None)
    kept = sweep.kept()
    if not (problem.x0.requires_grad or inputs.tensors):
        return solution
    problem.field.hold()
    places = solution.outputs.places
    count = solution.outputs.at_start
    record.start = (torch.cat(places)[:count] if places else record.start[0]) % max(1, len(problem.x0)), count
    values = _ReplaySamples.apply(record, sweep, kept, solution.values, problem.x0, *inputs.tensors)
    solution.values = values  # pyright: ignore[reportAttributeAccessIssue]
    return solution


class _ReplaySamples(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        record: SampleRecord,
        sweep: SampleSweep,
        kept: list[Tensor],
        values: Tensor,
        x0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.record, ctx.sweep, ctx.tensors = record, sweep, tensors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x0, *tensors, *kept)
        kept.clear()
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> Any:
        record: SampleRecord = ctx.record
        x0, *saved = ctx.saved_tensors
        if cotangent is None:
            return (None,) * (5 + len(ctx.tensors))
        with record.problem.field.recompute():
            if torch.is_grad_enabled():
                return None, None, None, None, *differentiable_again(record, x0, ctx.tensors, cotangent)
            a, found = ctx.sweep.back(record, x0, saved[len(ctx.tensors) :], cotangent)
        samples, count = record.start
        if count:
            a = a.index_add(0, samples.to(a.device), cotangent[:count])
        return None, None, None, None, a, *found


def differentiable_again(
    record: SampleRecord, x0: Tensor, tensors: tuple[Tensor, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """The same gradients with a graph of their own, for second derivatives: all rounds again, on the tape."""
    state: list[Tensor] = [x0]
    pieces: list[tuple[Tensor, Tensor]] = []
    samples, count = record.start
    if count:
        pieces.append((x0.index_select(0, samples.to(x0.device)), cotangent[:count]))
    for done in record.rounds:
        if isinstance(done, Round):
            index = done.samples.to(x0.device)
            x, *memory = select(state, index)
            trial, found = record.redo(done, x, memory[: done.memories])
            f: Any = trial.span.piece
            used = (t for piece in f.pieces for t in record.inputs.piece(piece))
            record.inputs.check(f.pieces[0], [trial.x_next], *state, x0, *used)
            pieces += [(value, of_take(cotangent, take)) for take, value in found]
            state = put(state, index, [trial.x_next, *trial.memory.tensors], record.batch)
        for who, seed in at_ends(done, cotangent):
            pieces.append((state[0].index_select(0, who.to(x0.device)), seed))
    pieces = [(value, seed) for value, seed in pieces if value.requires_grad]
    inputs = [t for t in (x0, *tensors) if t.requires_grad]
    values, seeds = [value for value, _ in pieces], [seed for _, seed in pieces]
    grads = dict(zip(map(id, inputs), vjp(values, inputs, seeds, create_graph=True), strict=True))
    return tuple(grads.get(id(t)) for t in (x0, *tensors))

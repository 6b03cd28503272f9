"""A compiled solve of samples with their own steps from the host's side: rounds over the rows that are on their way, in
ever smaller batches, their record, and the way back over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenet.compiled.per_sample.graphs import ROWS, rounds, rounds_back
from odenet.compiled.record import FIRST_RECORD, LARGEST_RECORD
from odenet.compiled.scope import Leaves, check_modules
from odenet.compiled.walk import compiled
from odenet.solvers.control import NONFINITE_RETRIES
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.per_sample import SampleProblem
from odenet.solvers.per_sample.adaptive import AdaptiveWalk
from odenet.solvers.registry import solvers

F64 = torch.float64
FEW, MANY = 64, 4096


@dataclass
class Phase:
    """Rounds over one batch of rows.

    Attributes:
        samples: whose they are; on the host, like `accepted`.
        accepted: how many steps each row accepted.
        steps: the most of them.
        record: starts and ends of the steps, (2, steps, rows), and the states at their starts, (steps, rows, ...),
            those of a row up to its own number of accepted steps.
        segments: of each step, on which segment of its way, (steps, rows) on the host; None if there is one.
    """

    samples: Tensor
    accepted: Tensor
    steps: int
    record: tuple[Tensor, Tensor]
    segments: Tensor | None = None


@dataclass
class Walked:
    """What a compiled solve did.

    Attributes:
        phases: the rounds, from larger batches to smaller ones.
        ends: the last state of each sample, (batch, ...).
        times: times of the answer that lie inside a sample's interval, (times, batch), others infinitely far; on the
            state's device.
        outputs: the states there.
        rows: evaluations of F for single rows, those that were done included.
    """

    phases: list[Phase]
    ends: Tensor
    times: Tensor
    outputs: Tensor
    rows: int


class SampleGraphs:
    """The graphs of one kind of solve.

    Args:
        problem: a solve of that kind.

    Attributes:
        compilations: how many graphs have been made so far.
        observed: as in `odenet.compiled.record.Solves`.
    """

    takes_autocast = observed = False
    takes_all = False

    def __init__(self, problem: SampleProblem):
        scheme = problem.scheme
        stepper = solvers[scheme.solver]
        assert isinstance(stepper, ExplicitRungeKutta) and stepper.error_order is not None
        self.tableau, self.compilations, self.capacity = stepper.tableau, 0, FIRST_RECORD
        self._backs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._made: set[tuple[Callable[..., Any], bool]] = set()
        self._making = False
        self._forward = compiled(rounds(self.tableau, scheme.step_controller, stepper.error_order), self._notice)

    @torch.no_grad()
    def walk(self, problem: SampleProblem, keep: bool) -> Walked | None:
        """Solve, and count; None if a sample broke down, with nothing counted.

        Args:
            problem: what to solve.
            keep: whether the states at the starts of the steps are wanted.

        Raises:
            RefusalError: the gradient cannot be compiled so.
        """
        scheme, x0, device, field = problem.scheme, problem.x0.detach(), problem.x0.device, problem.field
        check_modules(problem, keep)
        begun = AdaptiveWalk(problem, None)
        with field.consistency.forward():
            begun.begin()
        field.settle()
        if begun.errors:
            return None
        each, calls = begun.each, 0
        samples, x, k, budget = begun.samples, begun.x.detach().contiguous(), begun.first, scheme.max_steps
        assert k is not None
        one, nothing = torch.ones_like(begun.t), torch.zeros(len(ROWS) - 4, len(samples), dtype=F64)
        at = torch.cat([torch.stack([begun.t, begun.h, one, one]), nothing])
        to = torch.stack([begun.end, begun.sign, begun.resolution])
        answer = self._outputs(problem)
        ends = x0.clone(memory_format=torch.contiguous_format)
        tries, forced, accepted, phases = *torch.zeros(3, len(x0), dtype=F64).unbind(), list[Phase]()
        later = self.tableau.stages - 1
        evaluated = int(each.nfe.sum())
        while len(samples):
            record, at, x, k = self._phase(problem, samples, (at, to), (x, k), answer, keep, budget)
            done = at[5:].max(1).values.tolist()
            phases.append(Phase(samples, at[5].long(), int(done[0]), record))
            accepted[samples] += at[5]
            tries[samples] += at[6]
            if done[2]:
                forced[samples] += at[7]
            made = int(done[1]) * later + int(done[3])
            budget, calls = budget - int(done[1]), calls + made
            evaluated += made * max(2, len(samples))
            ends.index_copy_(0, samples.to(device), x)
            on = (at[0] != to[0]).nonzero()[:, 0]
            if not len(on):
                break
            index = on.to(device)
            samples, at, to = samples[on], at[:, on], to[:, on]
            x, k = x.index_select(0, index), k.index_select(0, index)
            if budget <= 0 or self._stuck(at, to, scheme):
                return None
            at[5:] = 0
        nfe = each.nfe + later * tries.long()
        if not self.tableau.fsal:  # F where steps begin that do not follow a rejected one
            nfe += (accepted - (accepted > 0).to(F64)).long()
        if scheme.max_nfe is not None and bool((nfe > scheme.max_nfe).any()):
            return None
        stats = problem.stats
        each.nfe.copy_(nfe)
        each.accepted, each.rejected, each.forced = accepted.long(), (tries - accepted).long(), forced.long()
        each.history += [_sizes(phase) for phase in phases]
        each.evaluated = each.padded = evaluated
        stats.nfe += calls
        for name in ("accepted", "rejected", "forced"):
            setattr(stats, name, int(getattr(each, name).sum()))
        most = max((phase.steps for phase in phases), default=0)
        self.capacity = max(self.capacity, 2 ** math.ceil(math.log2(most + 1)))
        return Walked(phases, ends, *answer, evaluated)

    def _phase(
        self,
        problem: SampleProblem,
        samples: Tensor,
        rows: tuple[Tensor, Tensor],
        start: tuple[Tensor, Tensor],
        answer: tuple[Tensor, Tensor],
        keep: bool,
        budget: int,
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        """Rounds until a part of the rows is done: their record, and where they are."""
        scheme, device, count = problem.scheme, problem.x0.device, len(samples)
        (at, to), (x, k), (times, values) = rows, start, answer
        index = samples.to(device)
        if count == 1:  # a batch of one would be a graph of its own
            index, at, to = index.repeat(2), at.repeat(1, 2), to.repeat(1, 2)
            x, k = (part.repeat(2, *[1] * (part.dim() - 1)) for part in (x, k))
            at[0, 1] = to[0, 1]
        batch = len(index)
        room = LARGEST_RECORD // (x.numel() * x.element_size()) if keep else self.capacity
        capacity = _unlike(max(8, min(self.capacity, room)), batch, len(times))
        record = (
            torch.empty(2, capacity, batch, dtype=F64, device=device),
            x.new_empty(capacity if keep else 2, *x.shape),
        )
        self._expect(self._forward, len(times) > 0)
        fewest = 0 if x.numel() <= FEW else count // 4 if x.numel() <= MANY else count // 2
        numbers = [*scheme.tolerances, scheme.h_min, scheme.h_max, budget, fewest, capacity, keep]
        mine = values.index_select(1, index)
        dynamic = self._dynamic
        buffers = (
            dynamic(record[0], 1, 2),
            dynamic(record[1], 0, 1),
            dynamic(torch.arange(batch, device=device), 0),
            dynamic(times.index_select(1, index), 0, 1),
            dynamic(mine, 0, 1),
        )
        found, x, k = self._forward(
            problem.functions[0], torch.tensor(numbers, dtype=F64, device=device), dynamic(at.to(device), 1),
            dynamic(to.to(device), 1), dynamic(x, 0), dynamic(k, 0), self._rows_of(problem, index), buffers,
        )  # fmt: skip
        if len(times):
            values.index_copy_(1, index[:count], mine[:, :count])
        return record, found.cpu()[:, :count], x[:count], k[:count]

    @staticmethod
    def _stuck(at: Tensor, to: Tensor, scheme: Any) -> bool:
        """Whether a row that is on its way cannot go on: what the eager loop has words for."""
        t, h, _, _, bad, *_ = at
        size = torch.minimum(h.clamp(scheme.h_min, scheme.h_max), (to[0] - t).abs())
        return bool(((size <= to[2]) | (bad > NONFINITE_RETRIES)).any())

    @staticmethod
    def _outputs(problem: SampleProblem) -> tuple[Tensor, Tensor]:
        """The times of the answer inside the samples' intervals, and the place for the states there."""
        x0 = problem.x0.detach()
        times = torch.zeros(0, len(x0), dtype=F64)
        if problem.ts is not None:
            inside = (problem.ts != problem.t0) & (problem.ts != problem.t1)
            if bool(inside.any()):
                times = torch.where(inside, problem.ts, problem.sign * math.inf)
                more = _unlike(max(2, len(times)), len(x0)) - len(times)
                times = torch.cat([times, (problem.sign * math.inf).expand(more, -1)])
        times = times.to(x0.device)
        return times, x0.new_zeros(len(times), *x0.shape)

    def back(
        self, problem: SampleProblem, walked: Walked, leaves: Leaves, a: Tensor, cotangents: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Cotangents of x0 and of the leaves; what it takes is counted.

        Args:
            problem: what was solved.
            walked: its record.
            leaves: what F uses.
            a: cotangent of the last state of each sample.
            cotangents: of the states at `walked.times`, or None if they have none.
        """
        F, places, tensors = problem.functions[0], leaves.places, leaves.tensors
        names = tuple(leaves.names_in(F))
        if (names, places) not in self._backs:
            self._backs[names, places] = compiled(rounds_back(self.tableau, names), self._notice)
        back, dynamic = self._backs[names, places], self._dynamic
        self._expect(back, cotangents is not None)
        own = [len(names) + i for i, place in enumerate(places) if place in problem.field.own_args]
        values = [tensor.detach() for tensor in tensors]
        gradients = [torch.zeros_like(value) for value in values]
        times = walked.times if cotangents is not None else walked.times[:0]
        seeds = a.new_empty(0, *a.shape) if cotangents is None else cotangents
        used = self.tableau.stages if len(times) else self.tableau.used
        a, stats, each, calls = a.contiguous(), problem.stats, problem.stats.samples, 0
        assert each is not None
        for phase in reversed(walked.phases):
            index = phase.samples.to(a.device)
            accepted = phase.accepted.to(a.device)
            if len(index) == 1:
                index, accepted = index.repeat(2), torch.cat([accepted, torch.zeros_like(accepted)])
            pick = lambda part, *dims, index=index: dynamic(part.index_select(dims[-1], index), *dims)  # noqa: E731
            mine = tuple(pick(v, 0) if n in own else v for n, v in enumerate(values))
            given = tuple(dynamic(torch.zeros_like(v), 0) if n in own else gradients[n] for n, v in enumerate(mine))
            numbers = torch.stack([accepted, torch.arange(len(index), device=a.device)])
            b, *found = back(
                F, (dynamic(phase.record[0], 1, 2), dynamic(phase.record[1], 0, 1)),
                dynamic(numbers, 1), torch.tensor(phase.steps, device=a.device), pick(a, 0), given, mine,
                self._rows_of(problem, index), places, pick(times, 0, 1), pick(seeds, 0, 1),
            )  # fmt: skip
            count = len(phase.samples)
            a = a.index_copy(0, index[:count], b[:count])
            for n, part in enumerate(found):
                if n in own:
                    gradients[n].index_add_(0, index[:count], part[:count])
                else:
                    gradients[n] = part
            each.nfe_backward[phase.samples] += used * phase.accepted
            calls += phase.steps
        stats.nfe_backward += used * calls
        stats.vjps += used * calls
        stats.steps_backward += calls
        return a, *gradients

    def _rows_of(self, problem: SampleProblem, index: Tensor) -> tuple[Any, ...]:
        """F's arguments for some of the samples, as constants."""
        field = problem.field
        if not field.args:
            return ()
        shared = lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf  # noqa: E731
        own = lambda leaf: self._dynamic(leaf.detach(), 0) if isinstance(leaf, Tensor) else leaf  # noqa: E731
        return tuple(
            pytree.tree_map(own if number in field.own_args else shared, arg)
            for number, arg in enumerate(field.rows_of(index))
        )

    def _expect(self, graph: Callable[..., Any], outputs: bool) -> None:
        """Note whether the next call of a graph makes it; only then does it matter what is said of its sizes."""
        self._making = (graph, outputs) not in self._made
        self._made.add((graph, outputs))

    def _dynamic(self, x: Tensor, *dimensions: int) -> Tensor:
        """x, of which the graphs to be made are to take any size in these dimensions."""
        if self._making:
            torch._dynamo.maybe_mark_dynamic(x, dimensions)
        return x

    def _notice(self) -> None:
        self.compilations += 1


def _sizes(phase: Phase) -> tuple[Tensor, Tensor]:
    """(samples, sizes of their steps), as `SampleStats` keeps them."""
    starts, ends = phase.record[0][:, : phase.steps, : len(phase.samples)].cpu()
    taken = torch.arange(phase.steps)[:, None] < phase.accepted
    return phase.samples.expand(phase.steps, -1)[taken], (ends - starts).abs()[taken]


def _unlike(size: int, *others: int) -> int:
    """A size that is none of the others, which a graph would take to be the same one."""
    while size in others:
        size += 1
    return size


__all__: Sequence[str] = ["Phase", "SampleGraphs", "Walked"]

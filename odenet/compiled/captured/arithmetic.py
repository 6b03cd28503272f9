"""What lies between the evaluations of F in a walk on the device: times, states of stages, error, control, record.

Each is a function of tensors that looks at none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.graphs import error_ratio, first_probe, outputs_of, rms, size_by_probe, sizes_after
from odenet.solvers.control import LEAST_ERROR, NONFINITE_RETRIES, STRETCH, Controller
from odenet.solvers.explicit import combine
from odenet.solvers.tableau import Tableau

F64 = torch.float64
N, T, H, E1, E2, TRIES, FORCED, BAD, ACTIVE = range(9)  # what a walk's ledger begins with
HEADER = 9
Piece = Callable[..., Any]


class Arithmetic:
    """The arithmetic of one method, one operation after the other.

    Args:
        tableau: of the method.
        control: the controller and the order of the error estimate of an adaptive walk, or None.

    Attributes:
        stages: for each stage (x, h, k_1, ...) -> its state.
        end: (x, h, k_1, ...) -> x_next.
    """

    def __init__(self, tableau: Tableau, control: tuple[Controller, int] | None):
        self.tableau, self.control = tableau, control
        self.stages = [self._sum(row) for row in tableau.a]
        self.end = self._sum(tableau.b)

    def points(self, c: Tensor, span: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(t + c h, and t_next where c = 1; h), of a step (t, t_next, h), in the precision of a state."""
        t, t_next, h = span.unbind()
        return torch.where(c == 1, t_next, t + c * h).to(like.dtype), h.to(like.dtype)

    def cotangents(self, count: int) -> list[Piece]:
        """For each of so many stages (h, a, g_count, ..., g_{i+1}) -> h (b_i a + Σ_{j>i} a_ji g_j); None if that has no
        terms."""
        return [self._cotangent(row) for row in self.rows_back(count)]

    def rows_back(self, count: int) -> list[tuple[float, ...]]:
        """For each of so many stages (b_i, a_{count,i}, ..., a_{i+1,i})."""
        a, rows = self.tableau.a, []
        for i in range(count):
            later = (a[j] for j in reversed(range(i + 1, count)))
            rows.append((self.tableau.b[i], *(row[i] if i < len(row) else 0.0 for row in later)))
        return rows

    def total(self) -> Piece:
        """(a, g_1, ...) -> a + Σ g_i."""
        return lambda a, *g: sum(g, start=a)

    def planned(self, rows: int) -> Piece:
        """The plan of a trial, for a record of that many rows."""
        return planned(rows)

    def judged(self, rows: int, keep: bool) -> Piece:
        """What a trial leads to, for a record of that many rows, with or without states."""
        assert self.control is not None
        return judged(self.tableau, *self.control, rows, keep)

    def located(self) -> Piece:
        """(n, grid, sizes, span) -> n, as it is; then span is (t, t_next, h) of step n, and n the next one."""

        def locate(n: Tensor, grid: Tensor, sizes: Tensor, span: Tensor) -> Tensor:
            slot = n.clone()
            span.copy_(torch.cat([grid.index_select(0, torch.cat([n, n + 1])), sizes.index_select(0, n)]))
            n.add_(1)
            return slot

        return locate

    def moved(self, keep: bool) -> Piece:
        """What a step of a given grid leads to: a function of its number, x, h, the record, and the stages."""
        b = self.tableau.b

        def move(n: Tensor, x: Tensor, h: Tensor, xs: Tensor, *k: Tensor) -> None:
            x_next = combine(x, h, b, k)
            if keep:
                xs.index_copy_(0, n, x.unsqueeze(0))
            x.copy_(x_next)

        return move

    def _sum(self, row: Sequence[float]) -> Piece:
        return (lambda x, h, *k: combine(x, h, row, k)) if any(row) else (lambda x, h, *k: x)

    def _cotangent(self, row: Sequence[float]) -> Piece:
        return (lambda h, *parts: combine(None, h, row, parts)) if any(row) else (lambda h, *parts: None)

    def probe(self, ledger: Tensor, given: Tensor, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`first_probe` where a walk begins."""
        t1, sign, rtol, atol = given[:4].unbind()
        sizes, time, state = first_probe(x, k, (ledger[T], t1, sign), rtol, atol)
        return sizes, time.to(x.dtype), state

    def begin(
        self, ledger: Tensor, given: Tensor, x: Tensor, k: Tensor, sizes: Tensor | None, slope: Tensor | None
    ) -> None:
        """The first size, and whether there is anything to begin with."""
        n, t, h, e1, e2, tries, forced, bad, active = ledger[:HEADER].unbind()
        if sizes is not None:
            assert slope is not None and self.control is not None
            h = size_by_probe(sizes, slope, x, k, self.control[1], given[2], given[3])
        bad = torch.where(torch.isfinite(rms(x) + rms(k)), bad, 1e3)
        ledger[:HEADER].copy_(torch.stack([n, t, h, e1, e2, tries, forced, bad, active]))


def planned(rows: int) -> Piece:
    """The plan of a trial."""

    def plan(ledger: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t, t_next, signed h) of the next trial; (h, whether it lands on t1); whether it is one: if not, h is 0."""
        n, t, h, _, _, tries, _, bad, _ = ledger[:HEADER].unbind()
        t1, sign, _, _, h_min, h_max, resolution, budget = given.unbind()
        h = torch.minimum(torch.maximum(h, h_min), h_max)
        left = (t1 - t).abs()
        lands = (h >= left) | ((h * STRETCH >= left) & (left <= h_max + resolution))
        t_next = torch.where(lands, t1, t + sign * h)
        goes_on = (bad <= NONFINITE_RETRIES) & (tries < budget) & ((t_next - t).abs() > resolution)
        active = (t != t1) & (n < rows) & goes_on
        t_next = torch.where(active, t_next, t)
        return torch.stack([t, t_next, t_next - t]), torch.stack([h, lands.to(F64)]), active

    return plan


def judged(tableau: Tableau, controller: Controller, order: int, rows: int, keep: bool) -> Piece:
    """What a trial leads to."""
    fsal = tableau.fsal

    def judge(
        ledger: Tensor, given: Tensor, plan: tuple[Tensor, Tensor, Tensor], size: Tensor, x: Tensor, k: Tensor,
        x_next: Tensor, xs: Tensor, times: Tensor, outputs: Tensor, *stages: Tensor,
    ) -> None:  # fmt: skip
        """Accept or reject, pick the next h, write the record and the outputs; nothing, if the trial is none."""
        span, (h, landing), active = plan[0], plan[1].unbind(), plan[2]
        (n, t, _, e1, e2, tries, forced, bad, _), (_, t_next, signed) = ledger[:HEADER].unbind(), span.unbind()
        sign, rtol, atol, h_min = given[1:5].unbind()
        weight = atol.to(x.dtype) + rtol.to(x.dtype) * torch.maximum(x.abs(), x_next.abs())
        error = error_ratio(tableau, size, stages, weight, rms)
        finite = torch.isfinite(error)
        ok = active & finite & ((error <= 1) | (h <= h_min))
        accept, retry = sizes_after(controller, order, (h, signed.abs(), landing != 0), (error, e1, e2))
        after = torch.stack([
            n + ok.to(F64), torch.where(ok, t_next, t), torch.where(ok, accept, retry),
            torch.where(ok, error.clamp(min=LEAST_ERROR), e1), torch.where(ok, e1, e2), tries + 1,
            forced + (ok & (error > 1)).to(F64), torch.where(finite, 0.0, bad + 1), torch.ones_like(t),
        ])  # fmt: skip
        before = torch.cat([ledger[:ACTIVE], torch.zeros_like(ledger[:1])])
        header = torch.where(active, after, before)
        slot = torch.where(ok, n, float(rows)).to(torch.int64).reshape(1)
        if times.shape[0]:
            outputs_inside(tableau, ok, span, sign, x, x_next, times, outputs, stages)
        if keep:
            xs.index_copy_(0, slot, x.unsqueeze(0))
        entries = torch.cat([torch.arange(HEADER, device=x.device), HEADER + slot, HEADER + rows + 1 + slot])
        ledger.index_copy_(0, entries, torch.cat([header, t.reshape(1), signed.reshape(1)]))
        if fsal:
            k.copy_(torch.where(ok, stages[-1], k))
        x.copy_(torch.where(ok, x_next, x))

    return judge


def outputs_inside(
    tableau: Tableau, ok: Tensor, span: Tensor, sign: Tensor, x: Tensor, x_next: Tensor, times: Tensor,
    outputs: Tensor, stages: Sequence[Tensor],
) -> None:  # fmt: skip
    """Write the states at the times that an accepted step passes over."""
    t, t_next, h = span.unbind()
    shape = (-1, *[1] * x.dim())
    inside = ok & (sign * (times - t) > 0) & (sign * (times - t_next) <= 0)
    values = outputs_of(tableau, (t, t_next, torch.where(h == 0, 1.0, h)), x, stages, times)
    values = torch.where((times == t_next).reshape(shape), x_next, values)
    outputs.copy_(torch.where(inside.reshape(shape), values, outputs))

"""The arithmetic of a walk in a few Triton kernels: one for each stage's state, three for error, control and record."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odenet.compiled.captured.arithmetic import Arithmetic, Piece, outputs_inside
from odenet.compiled.captured.field import kept
from odenet.solvers.control import LEAST, LEAST_ERROR, NONFINITE_RETRIES, STRETCH, Controller
from odenet.solvers.tableau import Tableau

F64 = torch.float64
BLOCK = 1024  # elements that a program has


class Fused(Arithmetic):
    """What `Arithmetic` computes, by the kernels of `odenet.compiled.captured.kernels`.

    Args:
        tableau: of the method.
        control: the controller and the order of the error estimate of an adaptive walk, or None.
        device: where.
    """

    def __init__(self, tableau: Tableau, control: tuple[Controller, int] | None, device: torch.device):
        from odenet.compiled.captured import kernels

        self._kernels, self._device = kernels, device
        self._kept: dict[tuple[float, ...], Tensor] = {}
        super().__init__(tableau, control)
        if control is not None:
            controller, order = control
            powers = [-beta / order for beta in controller.exponents]
            self._constants = self._numbers(
                STRETCH, NONFINITE_RETRIES, controller.safety, controller.least, controller.grow, controller.shrink,
                *powers, -1 / order, LEAST, LEAST_ERROR, 0.01,
            )  # fmt: skip

    def points(self, c: Tensor, span: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        times, size = like.new_empty(len(c)), like.new_empty(())
        self._kernels.points[(1,)](times, size, span, c, COUNT=len(c), WIDTH=_power_of_two(len(c)), num_warps=1)
        return times, size

    def total(self) -> Piece:
        return lambda a, *g: self._combined(a, None, self._numbers(*[1.0] * len(g)), g) if g else a

    def planned(self, rows: int) -> Piece:
        def plan(ledger: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            span, landing, active = (torch.empty(n, dtype=F64, device=ledger.device) for n in (3, 2, 1))
            self._kernels.plan[(1,)](ledger, given, self._constants, span, landing, active, ROWS=rows, num_warps=1)
            return span, landing, active

        return plan

    def judged(self, rows: int, keep: bool) -> Piece:
        tableau, kernels = self.tableau, self._kernels
        assert tableau.b_error is not None
        fine, coarse = _nonzero(tableau.b_error), _nonzero(tableau.b_coarse or ())
        fine_weights = self._numbers(*(w for _, w in fine))
        coarse_weights = self._numbers(*(w for _, w in coarse)) if coarse else None

        def judge(
            ledger: Tensor, given: Tensor, plan: tuple[Tensor, Tensor, Tensor], size: Tensor, x: Tensor, k: Tensor,
            x_next: Tensor, xs: Tensor, times: Tensor, outputs: Tensor, *stages: Tensor,
        ) -> None:  # fmt: skip
            (span, landing, active), n = plan, x.numel()
            programs = -(-n // BLOCK)
            k_all = _alike(stages, x)
            partial = torch.empty(2 * programs, dtype=F64, device=x.device)
            elements, verdict = self._numbers(n), torch.empty(2, dtype=torch.int64, device=x.device)
            kernels.sums[(programs,)](
                partial, x, x_next, size, given, fine_weights, tuple(k_all[i] for i, _ in fine), coarse_weights,
                tuple(k_all[i] for i, _ in coarse) if coarse else None, n, FINE=len(fine), COARSE=len(coarse),
                BLOCK=BLOCK,
            )  # fmt: skip
            kernels.judge[(1,)](
                ledger, given, self._constants, span, landing, active, partial, programs, elements, verdict,
                COARSE=len(coarse), ROWS=rows, BLOCK=BLOCK, num_warps=1,
            )  # fmt: skip
            if times.shape[0]:
                outputs_inside(tableau, verdict[0] != 0, span, given[1], x, x_next, times, outputs, k_all)
            kernels.move[(programs,)](
                x, x_next, k, k_all[-1], xs, verdict, n, FSAL=tableau.fsal, KEEP=keep, BLOCK=BLOCK
            )

        return judge

    def located(self) -> Piece:
        def locate(n: Tensor, grid: Tensor, sizes: Tensor, span: Tensor) -> Tensor:
            slot = torch.empty_like(n)
            self._kernels.locate[(1,)](n, slot, span, grid, sizes, num_warps=1)
            return slot

        return locate

    def moved(self, keep: bool) -> Piece:
        terms = _nonzero(self.tableau.b)
        weights = self._numbers(*(w for _, w in terms))

        def move(slot: Tensor, x: Tensor, h: Tensor, xs: Tensor, *k: Tensor) -> None:
            parts, n = _alike(k, x), x.numel()
            self._kernels.advance[(-(-n // BLOCK),)](
                x, h, weights, tuple(parts[i] for i, _ in terms), xs, slot, n, COUNT=len(terms), KEEP=keep, BLOCK=BLOCK
            )

        return move

    def _sum(self, row: Sequence[float]) -> Piece:
        terms = _nonzero(row)
        if not terms:
            return lambda x, h, *k: x
        weights = self._numbers(*(w for _, w in terms))
        return lambda x, h, *k: self._combined(x, h, weights, [k[i] for i, _ in terms])

    def _cotangent(self, row: Sequence[float]) -> Piece:
        terms = _nonzero(row)
        if not terms:
            return lambda h, *parts: None
        weights = self._numbers(*(w for _, w in terms))
        return lambda h, *parts: self._combined(None, h, weights, [parts[i] for i, _ in terms])

    def _combined(self, x: Tensor | None, h: Tensor | None, weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
        """x + h Σ w_i k_i."""
        like = terms[0] if x is None else x
        out, n = kept(like), like.numel()
        terms = _alike(terms, out)
        self._kernels.combine[(-(-n // BLOCK),)](
            out, None if x is None else _alike([x], out)[0], h, weights, tuple(terms), n, COUNT=len(terms), BLOCK=BLOCK
        )
        return out

    def _numbers(self, *values: float) -> Tensor:
        """Numbers that stay where they are."""
        found = self._kept.get(values)
        if found is None:
            with torch.inference_mode(False):
                found = self._kept[values] = torch.tensor(values, dtype=F64, device=self._device)
        return found


def _nonzero(row: Sequence[float]) -> list[tuple[int, float]]:
    return [(i, w) for i, w in enumerate(row) if w != 0]


def _alike(tensors: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """The tensors, laid out as another one is."""
    return [x if x.stride() == like.stride() else kept(like).copy_(x) for x in tensors]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()

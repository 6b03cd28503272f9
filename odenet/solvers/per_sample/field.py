"""F as samples with their own times see it: evaluated for those that need it, counted for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from odenet.depth import DepthWeights
from odenet.errors import InputError
from odenet.solvers.field import Observer, VectorField, check_unchanged, version_of
from odenet.solvers.grid import Piece
from odenet.solvers.per_sample.timetable import Timetable
from odenet.solvers.stats import Stats

UNSETTLED = 32


class SampleField(VectorField):
    """F over all pieces of weights, for any of the samples.

    Args:
        weights: F with its weights over depth.
        args: handed to F after (t, x).
        x0: (batch, ...) a state, for shape, dtype and device.
        stats: counts every evaluation.
        timetable: which piece each sample is on.
        own_args: which of `args` hold a row for each sample; None if that was not said.
        intervals: (t0, t1) of the samples, each (batch,).

    Attributes:
        again: evaluations for single rows that were made for the sake of other samples; those count for none.

    Raises:
        InputError: F would couple samples, or it is not clear which arguments belong to them.
    """

    def __init__(
        self,
        weights: DepthWeights,
        args: tuple[Any, ...],
        x0: Tensor,
        stats: Stats,
        timetable: Timetable,
        own_args: bool | Sequence[int] | None,
        intervals: tuple[Tensor, Tensor],
    ):
        t0, t1 = ((float(t[0]), bool((t != t[0]).any())) if len(t) else (0.0, False) for t in intervals)
        if weights.varies and (t0[1] or t1[1]):
            raise InputError(
                "weights that vary within a piece of depth need one interval for all samples, and t_span differs "
                "between them; use weights='tied' or weights that are constant on pieces"
            )
        pieces = [Piece(i, t0[0], t1[0]) for i in range(weights.pieces)]
        super().__init__(weights, args, x0, pieces, stats)
        self.batch, self.timetable = x0.shape[0], timetable
        self.own_args = check_own_args(args, own_args, self.batch)
        self.again = 0
        self._counted: list[Rows] = []
        self._seen: set[int] = set()
        for thing in (thing for found in self.found for thing in found):
            if isinstance(thing, _BatchNorm) and (thing.training or not thing.track_running_stats):
                raise InputError(
                    "BatchNorm in training mode makes a sample depend on its batch, which per_sample=True rules out; "
                    "use norm='group', or F.eval()"
                )

    def on(self, samples: Tensor, segments: Tensor) -> Rows:
        """F for some of the samples.

        Args:
            samples: which, increasing, (rows,), on the host.
            segments: the segment of its way that each is on, likewise.
        """
        return Rows(self, samples, segments)

    def rows_of(self, index: Tensor, args: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """The arguments for some of the samples, or of those that `args` are for already; `index` on the device."""
        args = self.args if args is None else args
        return tuple(_selected(arg, index) if n in self.own_args else arg for n, arg in enumerate(args))

    def observe(self, observer: Observer | None) -> None:
        """Show an observer the first evaluation on each piece that has a graph."""
        self.observer = observer
        self._seen.clear()

    def settle(self) -> None:
        """Bring the counts of each sample up to date."""
        each = self.stats.samples
        assert each is not None
        counts = each.nfe_backward if self.recomputing else each.nfe
        for rows in self._counted:
            if rows.again:
                self.again += rows.calls * len(rows.samples)
            else:
                counts.index_add_(0, rows.samples, torch.full_like(rows.samples, rows.calls))
            rows.calls = 0
        self._counted.clear()

    @contextlib.contextmanager
    def recompute(self) -> Iterator[None]:
        """Context in which evaluations repeat the forward pass: counted as backward ones, changing nothing."""
        self.settle()
        with super().recompute():
            try:
                yield
            finally:
                self.settle()

    def explain(self, error: Exception, x: Tensor) -> None:
        """Add to an error of F what may have caused it."""
        if x.shape[0] < self.batch:
            error.add_note(
                f"per_sample=True: F was called with {x.shape[0]} of {self.batch} samples; tensors that belong to "
                "samples go through args=, named in per_sample_args"
            )
        elif isinstance(error, RuntimeError):  # what PyTorch raises where shapes do not broadcast
            error.add_note(
                f"per_sample=True: F was called with t of shape ({x.shape[0]},), a time for each sample, and x of "
                f"shape {tuple(x.shape)}; shape t like t.reshape(-1, *[1] * (x.dim() - 1))"
            )

    def evaluate(self, piece: int, t: Tensor, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        """F on a piece of weights for the rows of x at their times."""
        if self.observer is None or piece in self._seen or torch.is_grad_enabled():  # as for a Jacobian
            return self._called(piece, t, x, args)
        with torch.enable_grad():
            k = self._called(piece, t, x.detach(), args)
            self.observer(piece, k)
        if k.requires_grad:
            self._seen.add(piece)
        return k.detach()

    def _called(self, piece: int, t: Tensor, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        if self.recomputing:
            self.stats.nfe_backward += 1
        else:
            self.stats.nfe += 1
        F, unknown = self.weights.piece(piece, *self._interval), not self.consistency.knows(piece)
        version = version_of(x)
        try:
            k = self.checked(self.consistency.call(piece, lambda: F(t, x, *args)), x)
            check_unchanged(x, version)
        except Exception as error:
            self.explain(error, x)
            raise
        if unknown and self.consistency.is_random(piece):
            raise InputError(
                "F draws random numbers (dropout?), and no draw can hold for a solve in which samples leave the "
                "evaluated batch; use F.eval(), or per_sample=False"
            )
        return k


class Rows:
    """F for some of the samples: what a stepper evaluates.

    Args:
        field: F.
        samples: which samples, increasing, on the host.
        segments: the segment of its way that each is on.
        again: whether these samples have had these evaluations already.
    """

    def __init__(self, field: SampleField, samples: Tensor, segments: Tensor, again: bool = False):
        self.again = again
        self.field, self.samples, self.segments, self.calls = field, samples, segments, 0
        table = field.timetable
        pieces = table.weights[samples, segments] if field.weights.pieces > 1 else torch.zeros(1, dtype=torch.long)
        self.pieces: list[int] = pieces.unique().tolist() or [0]
        self._groups = [(pieces == piece).nonzero()[:, 0].to(field.device) for piece in self.pieces]
        self._order = torch.cat(self._groups).argsort() if len(self._groups) > 1 else None
        whole = len(samples) == field.batch
        self.index = None if whole else samples.to(field.device, non_blocking=True)
        self.args = field.args if self.index is None or not field.own_args else field.rows_of(self.index)
        self._alone = self.pieces[0] if self._order is None and table.shown is None else None
        self._F = field.weights.piece(self.pieces[0], *field._interval)
        self._shown = table.shown and tuple(part[samples, segments].to(field.device) for part in table.shown)

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """F(t, x), times (rows,) in float64, the state (rows, ...)."""
        field = self.field
        if self.calls == 0:
            if len(field._counted) == UNSETTLED:
                field.settle()
            field._counted.append(self)
        self.calls += 1
        if self._alone is not None and field.observer is None and field.consistency.plain[self._alone]:
            if field.recomputing:
                field.stats.nfe_backward += 1
            else:
                field.stats.nfe += 1
            try:
                k = self._F(t if t.dtype == field.time_dtype else t.to(field.time_dtype), x, *self.args)
            except Exception as error:
                field.explain(error, x)
                raise
            if isinstance(k, Tensor) and k.shape == x.shape and k.dtype == x.dtype and k.device == field.device:
                return k
            return field.checked(k, x)
        if self._shown:
            first, after, last, before = self._shown
            t = torch.where(t == first, after, torch.where(t == last, before, t))
        t = t.to(field.time_dtype)
        if self._order is None:
            return field.evaluate(self.pieces[0], t, x, self.args)
        parts = [
            field.evaluate(piece, t[rows], x.index_select(0, rows), field.rows_of(rows, self.args))
            for piece, rows in zip(self.pieces, self._groups, strict=True)
        ]
        return torch.cat(parts).index_select(0, self._order)

    def select(self, rows: Tensor, again: bool = False) -> Rows:
        """F for some of these samples; `rows` is on the host."""
        return Rows(self.field, self.samples[rows], self.segments[rows], again)

    def time(self, t: Tensor) -> Tensor:
        """Host times as F is shown them."""
        return t.to(self.field.device, self.field.time_dtype)


def _selected(arg: Any, rows: Tensor) -> Any:
    return pytree.tree_map(lambda leaf: leaf.index_select(0, rows) if isinstance(leaf, Tensor) else leaf, arg)


def check_own_args(args: tuple[Any, ...], own: bool | Sequence[int] | None, batch: int) -> frozenset[int]:
    """Indices of the arguments that hold a row for each sample.

    Raises:
        InputError: an argument that was named does not; or nothing was said about one that could.
    """
    rows = [[leaf.shape[:1] for leaf in pytree.tree_leaves(arg) if isinstance(leaf, Tensor)] for arg in args]
    if own is None:
        for number, shapes in enumerate(rows):
            if batch > 1 and (batch,) in shapes:
                raise InputError(
                    f"args[{number}] holds a tensor whose first dimension is the batch's, {batch}: if its rows belong "
                    f"to the samples say per_sample_args=({number},), and per_sample_args=() if all samples share it"
                )
        return frozenset()
    named = range(len(args)) if own is True else () if own is False else own
    for number in named:
        if number not in range(len(args)):
            raise InputError(f"per_sample_args names args[{number}], but there are {len(args)} of them")
        if not rows[number] or any(shape != (batch,) for shape in rows[number]):
            raise InputError(
                f"per_sample_args names args[{number}], whose tensors must then have a row for each of the {batch} "
                "samples"
            )
    return frozenset(named)

"""F as a solver sees it: called with host times, counted, checked, and the same function throughout a solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from odenet.depth import DepthWeights
from odenet.errors import FunctionBudgetError, ResidualError
from odenet.solvers.consistency import Consistency
from odenet.solvers.grid import Piece
from odenet.solvers.holdings import Unchanged
from odenet.solvers.reach import reachable
from odenet.solvers.stats import Stats
from odenet.solvers.stepper import Evaluate

Observer = Callable[[int, Tensor], None]


class VectorField:
    """F over all pieces of depth, with its bookkeeping.

    Args:
        weights: F with its weights over depth.
        args: handed to F after (t, x).
        x0: a state, for shape, dtype and device.
        pieces: of depth; F is never shown a time outside the one that it is evaluated on.
        stats: counts every evaluation.
        max_nfe: budget of forward evaluations, or None.
        jumps: times at which F is discontinuous; at the end of a piece that is one, F is shown the nearest time inside.

    Attributes:
        found: for each piece, the tensors and modules that F reaches there.
        handed: what `hold` found in args.
    """

    def __init__(
        self,
        weights: DepthWeights,
        args: tuple[Any, ...],
        x0: Tensor,
        pieces: Sequence[Piece],
        stats: Stats,
        max_nfe: int | None = None,
        jumps: Sequence[float] = (),
    ):
        self.weights, self.args, self.stats, self.max_nfe = weights, args, stats, max_nfe
        self.pieces, self.jumps = pieces, jumps
        self.time_dtype = torch.float32 if x0.dtype.itemsize < 4 else x0.dtype.to_real()
        self.device = x0.device
        self.recomputing = False
        self.observer: Observer | None = None
        self.handed = Unchanged()
        self._interval = pieces[0].start, pieces[-1].end
        found = [reachable(weights.piece(i, *self._interval)) for i in range(weights.pieces)]
        self.found = [found[piece.weights] for piece in pieces]
        self.consistency = Consistency(([m for m in f if isinstance(m, nn.Module)] for f in found), x0.device)

    def piece(self, index: int) -> Evaluate:
        """F on one piece of depth, as a function of a host time and the state."""
        piece = self.pieces[index]
        F, args = self.weights.piece(piece.weights, *self._interval), self.args
        stats, plain = self.stats, self.consistency.plain
        unseen, weights = self.observer is not None, piece.weights
        inside = self.shown(index)
        dtype, device, full = self.time_dtype, self.device, torch.full

        def evaluate(t: float, x: Tensor) -> Tensor:
            nonlocal unseen
            if inside:
                t = inside.get(t, t)
            if unseen and not torch.is_grad_enabled():
                k = self._observed(F, index, t, x)
                unseen = not k.requires_grad
                return k.detach()
            if self.max_nfe is not None or not plain[weights]:
                return self._evaluate(F, index, t, x)
            if self.recomputing:
                stats.nfe_backward += 1
            else:
                stats.nfe += 1
            k = F(full((), t, dtype=dtype, device=device), x, *args)
            if isinstance(k, Tensor) and k.shape == x.shape and k.dtype == x.dtype and k.device == device:
                return k
            return self.checked(k, x)

        return evaluate

    def shown(self, index: int) -> dict[float, float]:
        """For the ends of a piece that are jumps the times that F is shown there."""
        piece = self.pieces[index]
        return {t: self._nearest(t, other) for t, other in (piece[1:], piece[:0:-1]) if t in self.jumps}

    def _nearest(self, t: float, towards: float) -> float:
        """The time next to t that F can be shown in the state's precision."""
        ends = torch.tensor([t, towards], dtype=self.time_dtype)
        return float(torch.nextafter(ends[0], ends[1]))

    def time(self, t: float) -> Tensor:
        """A host time as F is shown it: a 0-d tensor of the state's precision, on its device."""
        return torch.full((), t, dtype=self.time_dtype, device=self.device)

    def hold(self) -> None:
        """Remember what F is and what it is handed, for recomputations that come later."""
        self.consistency.hold()
        if self.args:
            given = [arg for arg in tree_leaves(self.args) if isinstance(arg, Tensor)]
            self.handed = Unchanged(("a tensor of shape {} in args", arg) for arg in given)

    def recompute(self) -> _Recomputation:
        """Context in which evaluations repeat the forward pass: counted as backward ones, changing nothing."""
        return _Recomputation(self)

    def _evaluate(self, F: Callable[..., Tensor], index: int, t: float, x: Tensor) -> Tensor:
        stats = self.stats
        if self.recomputing:
            stats.nfe_backward += 1
        else:
            if self.max_nfe is not None and stats.nfe >= self.max_nfe:
                raise FunctionBudgetError(
                    f"the budget of {self.max_nfe} evaluations of F was used up",
                    t=t,
                    h=stats.h[-1] if stats.h else 0.0,
                    nfe=stats.nfe,
                    advice="raise max_nfe, loosen rtol and atol, or take fewer steps",
                )
            stats.nfe += 1
        time, version = self.time(t), version_of(x)
        k = self.consistency.call(self.pieces[index].weights, lambda: F(time, x, *self.args))
        check_unchanged(x, version)
        return self.checked(k, x)

    def _observed(self, F: Callable[..., Tensor], index: int, t: float, x: Tensor) -> Tensor:
        """The first evaluation on a piece, with a graph, so that an observer can see which tensors F uses.

        As long as nothing that F uses requires a gradient there is no graph, and the next evaluation is observed too.
        """
        assert self.observer is not None
        with torch.enable_grad():
            k = self._evaluate(F, index, t, x.detach())
            self.observer(index, k)
        return k

    def checked(self, k: Any, x: Tensor) -> Tensor:
        """A slope at x, if it is one.

        Raises:
            ResidualError: it does not keep x's shape, dtype or device.
        """
        if not isinstance(k, Tensor):
            raise ResidualError(f"F(t, x) must return a tensor of x's shape {tuple(x.shape)}, got {type(k).__name__}")
        if k.shape != x.shape:
            raise ResidualError(
                f"F(t, x) must keep the shape of x, {tuple(x.shape)}, but returned {tuple(k.shape)}; "
                "change width or resolution between blocks, not inside one"
            )
        if k.device != x.device:
            raise ResidualError(f"F(t, x) must stay on x's device {x.device}, but returned a tensor on {k.device}")
        if k.dtype != x.dtype:
            if self.consistency.autocast:
                return k.to(x.dtype)
            raise ResidualError(
                f"F(t, x) must keep x's dtype {x.dtype}, but returned {k.dtype}; convert F with F.to({x.dtype}), "
                "or run low precision under torch.autocast"
            )
        return k


def version_of(x: Tensor) -> int | None:
    """How often x was changed in place; None if nobody counts."""
    return None if x.is_inference() else x._version


def check_unchanged(x: Tensor, version: int | None) -> None:
    """Raise `ResidualError` if x was changed in place since it had this version: the step goes on from it."""
    if version is not None and x._version != version:
        raise ResidualError(
            "F(t, x) changed x in place, and the step goes on from x; use operations that return a new tensor, such as "
            "x * 2 for x.mul_(2) and ReLU() for ReLU(inplace=True), or begin with x = x.clone()"
        )


class _Recomputation:
    def __init__(self, field: VectorField):
        self.field = field

    def __enter__(self) -> None:
        self.field.handed.check()
        self.context = self.field.consistency.recomputation()
        self.context.__enter__()  # which raises if F is another one now
        self.field.recomputing = True

    def __exit__(self, *exception: Any) -> None:
        self.field.recomputing = False
        self.context.__exit__(*exception)

"""The way back over a record on the device: one step after the other, from the last, without a look at it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odenet.compiled.captured.arithmetic import Arithmetic, Piece
from odenet.compiled.captured.field import Field, kept
from odenet.compiled.captured.replay import Replay
from odenet.compiled.graphs import dense_weights
from odenet.compiled.scope import Leaves

F64 = torch.float64
foreach_add_, foreach_zero_ = torch._foreach_add_, torch._foreach_zero_  # type: ignore[attr-defined]


class WayBack:
    """The way back over steps of one method, with the stages of a step recomputed:

        c_i = h (b_i a_{n+1} + Σ_{j>i} a_ji g_j) + κ_i,   g_i = (∂F(t_i, X_i)/∂x)ᵀ c_i,   θ̄ += (∂F(t_i, X_i)/∂θ)ᵀ c_i
        a_n = a_{n+1} + Σ_i g_i

    with κ_i the cotangent of k_i from outputs inside the step.

    Args:
        field: F.
        arithmetic: of the method.
        x0: a state.
        names: of the parameters among the leaves, as F has them.
        leaves: what a gradient is wanted for beside the state.

    Attributes:
        a: cotangent of the state where the walk is.
        gradients: of the leaves, so far.

    Reference:
        Hager 2000, Runge-Kutta methods in optimal control and the transformed adjoint system.
    """

    def __init__(self, field: Field, arithmetic: Arithmetic, x0: Tensor, names: tuple[str, ...], leaves: Leaves):
        self.field, self.arithmetic, self.places = field, arithmetic, leaves.places
        self.names = names
        self.tableau = arithmetic.tableau
        self.parameters = [tensor.detach() for tensor in leaves.tensors[: len(leaves.names)]]  # the same memory
        with torch.inference_mode(False):
            self.x, self.a = kept(x0), kept(x0)
            self.gradients = [torch.zeros_like(tensor) for tensor in leaves.tensors]
            self.span = torch.zeros(3, dtype=F64, device=x0.device)
            self.c = torch.tensor(self.tableau.c, dtype=F64, device=x0.device)
        self._steps: dict[bool, Replay] = {}
        self._on_stages: list[Tensor] = []
        self._total = arithmetic.total()

    def begin(self, a: Tensor) -> None:
        """Start from the cotangent of the last state."""
        self.a.copy_(a)
        if self.gradients:
            foreach_zero_(self.gradients)

    def __call__(self, x: Tensor, span: Tensor, t: float, h: float, outputs: Sequence[tuple[float, Tensor]]) -> int:
        """Back over one step.

        Args:
            x: its start.
            span: (t, t_next, h), float64.
            t: the time there, on the host.
            h: its size, on the host.
            outputs: (time, cotangent) of answers inside the step.

        Returns:
            How often F was evaluated.
        """
        self.x.copy_(x)
        self.span.copy_(span)
        dense = bool(outputs)
        if dense:
            self._load_outputs([(time - t) / h for time, _ in outputs], h, [c for _, c in outputs])
        step = self._steps.get(dense)
        if step is None:
            step = self._steps[dense] = self._made(dense)
        step()
        for _, c in outputs:
            self.a.add_(c)
        return self._count(dense)

    def _count(self, dense: bool) -> int:
        """Stages of a step; where there are outputs inside, the last one of an FSAL method counts too."""
        return self.tableau.stages if dense else self.tableau.used

    def _load_outputs(self, fractions: list[float], h: float, cotangents: list[Tensor]) -> None:
        """κ_i = h Σ_j w_i(θ_j) c_j."""
        if not self._on_stages:
            with torch.inference_mode(False):
                self._on_stages = [kept(self.x) for _ in self.tableau.b]
        weights = dense_weights(self.tableau, torch.tensor(fractions, dtype=F64, device="cpu"))
        foreach_zero_(self._on_stages)
        for stage, row in zip(self._on_stages, weights, strict=True):
            for w, c in zip(row.tolist(), cotangents, strict=True):
                stage.add_(c, alpha=h * w)

    def _made(self, dense: bool) -> Replay:
        """A step with or without outputs inside; its capture leaves what was summed up so far as it is."""
        cotangents = self.arithmetic.cotangents(self._count(dense))
        step = Replay(lambda: self._back(dense, cotangents), self.x.device)
        so_far = [part.clone() for part in (self.a, *self.gradients)]
        step.capture()
        for part, value in zip((self.a, *self.gradients), so_far, strict=True):
            part.copy_(value)
        return step

    def _back(self, dense: bool, cotangents: Sequence[Piece]) -> None:
        with self.field.autocast.outside(self.x.device):
            size, leaves, found = self._stages(self._count(dense))
            with torch.no_grad():
                self._pull(size, leaves, found, cotangents, self._on_stages if dense else ())

    def _stages(self, count: int) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]:
        """h, the leaves, and (X_i, k_i) with the graph from the one to the other."""
        arithmetic, x = self.arithmetic, self.x
        with torch.no_grad():
            times, size = arithmetic.points(self.c, self.span, x)
        handed = self.field.arguments.values
        tensors = [*self.parameters, *(handed[place] for place in self.places)]
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        found: list[tuple[Tensor, Tensor]] = []
        k: list[Tensor] = []
        for i in range(count):
            with torch.no_grad():
                at = arithmetic.stages[i](x, size, *k)
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                value = self.field.of(self.names, leaves, self.places, times[i], at)
            found.append((at, value))
            k.append(value.detach())
        return size, leaves, found

    def _pull(
        self,
        size: Tensor,
        leaves: list[Tensor],
        found: list[tuple[Tensor, Tensor]],
        cotangents: Sequence[Piece],
        on_stages: Sequence[Tensor],
    ) -> None:
        g: list[Tensor] = []  # of the stages, from the last
        for i in reversed(range(len(found))):
            c = cotangents[i](size, self.a, *g)
            if on_stages:
                c = on_stages[i] if c is None else c + on_stages[i]
            at, k = found[i]
            back, parts = None, ()
            if c is not None and k.requires_grad:
                back, *parts = torch.autograd.grad(k, [at, *leaves], c, allow_unused=True)
            g.append(torch.zeros_like(at) if back is None else back)
            pairs = [(to, part) for to, part in zip(self.gradients, parts, strict=False) if part is not None]
            if pairs:
                foreach_add_(*map(list, zip(*pairs, strict=True)))
        self.a.copy_(self._total(self.a, *g))

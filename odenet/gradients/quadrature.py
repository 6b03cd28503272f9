"""The parameters' gradient by the quadrature that a Runge-Kutta method is for what does not feed back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odenet.gradients.augmented import Augmented
from odenet.solvers.explicit import ExplicitRungeKutta
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Trial

Products = Sequence[Tensor | None]


class Quadrature(ExplicitRungeKutta):
    """Steps of [x, a] that add θ̄ up on the way: θ̄⁺ = θ̄ + h Σ_i b_i K_i, K_i = -aᵢᵀ ∂F/∂θ at stage i.

    The numbers are those of the method on [x, a, θ̄]. The memory is θ̄, with a tensor without elements where nothing has
    arrived yet.

    Args:
        method: takes the steps.
        field: makes K with every evaluation.
        total: θ̄ where the walk begins.
    """

    advance = None  # type: ignore[assignment]  # its memory is what is wanted

    def __init__(self, method: ExplicitRungeKutta, field: Augmented, total: Products):
        super().__init__(method.tableau)
        self.method, self.field, self.total = method, field, total
        self._known: list[tuple[Tensor, Products]] = []

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """θ̄; `first` is the field's last evaluation."""
        if first is not None:
            self._known = [(first, self.field.products)]
        return _memory(self.total)

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step over `span`, whose memory has θ̄ at its end."""
        made: list[Products] = []

        def evaluate(t: float, z: Tensor) -> Tensor:
            k = f(t, z)
            made.append(self.field.products)
            return k

        known = next((products for k, products in self._known if k is first), None)
        if known is None:
            first = evaluate(span.t, x)
        else:
            made.append(known)
        trial = self.method.step(evaluate, span, x, NOTHING, first, error)
        parts = zip(totals(memory), *made, strict=True)
        weights = [span.h * b for b in self.tableau.b]
        trial.given, trial.memory = memory, _memory([_sum(total, weights, k) for total, *k in parts])
        assert first is not None
        self._known = [(first, made[0])] + ([] if trial.end is None else [(trial.end, made[-1])])
        return trial


def totals(memory: Memory) -> list[Tensor | None]:
    """θ̄ in a memory, None where nothing has arrived."""
    return [None if part is _ABSENT else part for part in memory.tensors]


_ABSENT = torch.empty(0)


def _memory(total: Products) -> Memory:
    return Memory(tuple(_ABSENT if part is None else part for part in total))


def _sum(total: Tensor | None, weights: Sequence[float], products: Products) -> Tensor | None:
    """total + Σ_i weights_i products_i, where None is zero."""
    result = None if total is None else total.clone()
    for weight, product in zip(weights, products, strict=False):
        if product is None or weight == 0:
            continue
        result = product * weight if result is None else result.add_(product, alpha=weight)
    return result

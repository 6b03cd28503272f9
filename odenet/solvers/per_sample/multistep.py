"""The step of an Adams method where every sample has its own grid, and its own past on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from odenet.solvers.explicit import combine
from odenet.solvers.multistep import Adams, adams_weights
from odenet.solvers.per_sample.field import Rows
from odenet.solvers.per_sample.spans import Spans
from odenet.solvers.stepper import NOTHING, Evaluate, Memory, Span, Trial


class SampleAdams(Adams):
    """`Adams` with weights of each sample, from where its own steps before began; a sample whose past is too short for
    them, at its start and behind each of its knots, jumps and events, takes a step of the starting method.

    Args:
        method: the method.
        options: of its corrector.
    """

    def __init__(self, method: Adams, options: Mapping[str, Any]):
        super().__init__(method.order, method.corrector, options)

    def start(self, f: Evaluate, t: float, x: Tensor, first: Tensor | None = None) -> Memory:
        """Slopes of which none is known yet."""
        return Memory(tuple(torch.zeros_like(x) for _ in range(self.looks_back)))

    def step(
        self,
        f: Evaluate,
        span: Span,
        x: Tensor,
        memory: Memory = NOTHING,
        first: Tensor | None = None,
        error: bool = False,
    ) -> Trial:
        """One step of each sample; the memory holds the slopes before the start, oldest first."""
        spans, rows = cast(Spans, span), cast(Rows, f)
        k = rows(spans.t, x) if first is None else first
        slopes = (*memory.tensors, k)
        known = spans.before.isfinite().all(1)
        if bool(known.all()):
            x_next = self._stepped(rows, spans, x, slopes)
        elif not bool(known.any()):
            x_next = self._starter.step(f, span, x, NOTHING, k).x_next
        else:
            x_next = x
            for mine, past in ((known, True), (~known, False)):
                which = mine.nonzero()[:, 0]
                index = which.to(x.device)
                part, own, at = rows.select(which), spans.rows(which, index), x.index_select(0, index)
                if past:
                    new = self._stepped(part, own, at, [slope.index_select(0, index) for slope in slopes])
                else:
                    start = k.index_select(0, index)
                    new = self._starter.step(cast(Any, part), cast(Any, own), at, NOTHING, start).x_next
                x_next = x_next.index_copy(0, index, new)
        return Trial(span, x, x_next, [k], given=memory, memory=Memory(slopes[1:]), first=k)

    def _stepped(self, f: Rows, spans: Spans, x: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """x⁺ where the past is long enough."""
        times = torch.cat([spans.before, spans.host[0][:, None]], 1)
        x_next = combine(x, spans.h, self._own_weights(spans, times), slopes)
        if not self.corrector:
            return x_next
        weights = self._own_weights(spans, torch.cat([times[:, 1:], spans.host[1][:, None]], 1))
        going, own = torch.arange(len(x)), f
        for correction in range(1, self._corrections + 1):
            index = going.to(x.device)
            pick = lambda part, index=index: part.index_select(0, index)  # noqa: E731
            at, before = pick(x), pick(x_next)
            known = [*map(pick, slopes[1:]), own(pick(spans.t_next), before)]
            new = combine(at, pick(spans.h), [pick(w) for w in weights], known)
            x_next = x_next.index_copy(0, index, new)
            if self._settled is None:
                continue
            left = ~self._is_settled(at, before, new).flatten(1).all(1).cpu()
            if not bool(left.any()):
                break
            if correction == self._corrections:
                self._warn()
                break
            going, own = going[left], own.select(left.nonzero()[:, 0])
        return x_next

    def _own_weights(self, spans: Spans, times: Tensor) -> list[Tensor]:
        """The weights of slopes at some times, (rows, n) on the host, each of h's shape."""
        nodes = ((times - spans.host[0][:, None]) / spans.host[2][:, None]).numpy().round(12)
        patterns, which = torch.unique(torch.from_numpy(nodes), dim=0, return_inverse=True)
        weights = torch.tensor([adams_weights(tuple(pattern)) for pattern in patterns.tolist()], dtype=torch.float64)
        return [w.to(spans.h).reshape(spans.h.shape) for w in weights[which].unbind(1)]

"""Rows of the tensors that a walk carries, x and the memory of its method: for all samples or for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def select(whole: Sequence[Tensor | None], index: Tensor) -> list[Any]:
    """Some rows of each; all of them, uncopied, where that many are asked for."""
    return [part if part is None or len(index) == len(part) else part.index_select(0, index) for part in whole]


def put(whole: Sequence[Tensor | None], index: Tensor, parts: Sequence[Tensor | None], batch: int) -> list[Any]:
    """The same with some rows replaced; where there was nothing the other rows are zero.

    Args:
        whole: tensors (batch, ...), or None.
        index: which rows, increasing, on their device.
        parts: what they become, (rows, ...); None is zero, and there may be more of them than of `whole`.
        batch: number of rows of the whole.
    """
    out = list(whole)
    out += [None] * (len(parts) - len(out))
    for n, part in enumerate(parts):
        old = out[n]
        if part is None and old is not None:
            part = old.new_zeros(len(index), *old.shape[1:])
        if part is None or len(index) == batch:
            out[n] = part
            continue
        old = part.new_zeros(batch, *part.shape[1:]) if old is None else old
        out[n] = old.index_copy(0, index, part)
    return out


def merged(ok: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`new` for the rows in `ok`, a mask, `old` for the others, which have no use for what there is more
    of in `new`."""
    both = [_where(ok, a, b) for a, b in zip(new, old, strict=False)]
    return (*both, *new[len(both) :])


def _where(ok: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(ok.reshape(-1, *(1,) * (new.dim() - 1)), new, old)

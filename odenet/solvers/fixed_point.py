"""Numbers in fixed point whose product with a ratio can be undone to the last bit: the bits it drops are stored."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

BITS = 44
LIMIT = 2**61
MOST = 2**63 - 1


def to_fixed(x: Tensor) -> Tensor:
    """round(2^44 x) as int64; a complex tensor gets an axis (real, imaginary). What does not fit becomes 2^61."""
    real = torch.view_as_real(x) if x.is_complex() else x
    scaled = torch.nan_to_num(real.detach().double() * 2**BITS, nan=LIMIT, posinf=LIMIT, neginf=-LIMIT)
    return scaled.round().clamp(-LIMIT, LIMIT).long()


def from_fixed(n: Tensor, like: Tensor) -> Tensor:
    """2^-44 n in the dtype of `like`; NaN where n has left the range, |2^-44 n| < 2^17."""
    real = torch.where(n.abs() < LIMIT, n.double() * 2.0**-BITS, torch.nan).to(like.dtype.to_real())
    return torch.view_as_complex(real.contiguous()) if like.is_complex() else real


def scaled(n: Tensor, factor: Any) -> Tensor:
    """round(factor n), the factor a number, or a tensor of one for each row of n."""
    if isinstance(factor, Tensor):
        factor = factor.double().reshape(-1, *(1,) * (n.dim() - 1))
    return (n.double() * factor).round().long()


class Ratio:
    """Multiplication of int64 tensors by p/q < 1 that can be undone: the dropped bits go into a store of int64 tensors.

        i ← q i + v mod q,   v ← p ⌊v/q⌋ + i mod p,   i ← ⌊i/p⌋

    takes log2(q/p) bits an element and multiplication; when an int64 is full, another is begun.

    Args:
        value: the factor, in (0, 1); the nearest fraction with a denominator up to 10^6 is taken.

    Reference:
        Maclaurin, Duvenaud and Adams 2015, Gradient-based Hyperparameter Optimization through Reversible Learning.
    """

    def __init__(self, value: float):
        fraction = Fraction(value).limit_denominator(10**6)
        self.p, self.q = fraction.numerator, fraction.denominator
        self.value = self.p / self.q
        self.capacity, bound = 0, 0
        while bound * self.q + self.q - 1 <= MOST and self.capacity < 10**6:
            bound = (bound * self.q + self.q - 1) // self.p
            self.capacity += 1

    def multiply(self, v: Tensor, store: tuple[Tensor, ...], number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """p/q v and the store after multiplication `number`, counted from 0."""
        full = number % self.capacity == 0
        i = torch.zeros_like(v) if full else store[-1]
        i = i * self.q + v.remainder(self.q)
        v = v.div(self.q, rounding_mode="floor") * self.p + i.remainder(self.p)
        i = i.div(self.p, rounding_mode="floor")
        return v, (*(store if full else store[:-1]), i)

    def divide(self, v: Tensor, store: tuple[Tensor, ...], number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What `multiply` was given for its multiplication `number`."""
        i = store[-1] * self.p + v.remainder(self.p)
        v = v.div(self.p, rounding_mode="floor") * self.q + i.remainder(self.q)
        i = i.div(self.q, rounding_mode="floor")
        first = number % self.capacity == 0
        return v, (store[:-1] if first else (*store[:-1], i))

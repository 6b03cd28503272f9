"""What a node of F's graph is in C++: where its elements lie, one lane for every sample, and how they are addressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odenet.compiled.rowwise.operations import Pointwise

Size = int | None  # None: the batch
SHARED, MOMENT, ROW, PARTIAL, TALLY, LATE = "shared", "moment", "row", "partial", "tally", "late"
SUMS = (PARTIAL, TALLY, LATE)
# over all lanes at once, said because the compiler would take few of them one by one, and round in another way
LANES = '_Pragma("omp simd") for (long r = 0; r < R; r++) '


USES_A_SUM = "it uses a sum over the samples, and not only to add to it"


class NotRowwiseError(Exception):
    """F is not a function of single samples that can be written row by row; the message says why."""


@dataclass(frozen=True)
class Value:
    """A node.

    Attributes:
        kind: "shared": one for the whole batch, the same at all times. "moment": one for the whole batch, of the time
            alone. "row": one for each sample, or, without a batch among `sizes`, of the time alone where each sample
            has its own. "partial": what is meant is the sum over the samples. "tally": that sum in one evaluation.
            "late": that sum, gathered over the steps.
        sizes: its shape, None for the batch.
        base: C++ expression of the address of its first element; "" for a number or something that is not stored yet.
        strides: in elements, one for each of `sizes`; 0 for the batch.
        number: C++ literal of a constant, "" for others.
        truth: whether it is a truth value.
        pending: an operation and its operands, where it is not stored but written out where it is used.
        backward: whether it depends on the cotangent.
    """

    kind: str
    sizes: tuple[Size, ...]
    base: str = ""
    strides: tuple[int, ...] = ()
    number: str = ""
    truth: bool = False
    pending: tuple[Pointwise, tuple[Value, ...]] | None = None
    backward: bool = False

    @property
    def lanes(self) -> bool:
        """Whether there is one number for each lane."""
        return self.kind in (ROW, PARTIAL)

    @property
    def common(self) -> bool:
        """Whether there is one for the whole batch."""
        return self.kind in (SHARED, MOMENT)

    @property
    def features(self) -> tuple[int, ...]:
        """Sizes without the batch."""
        return tuple(size for size in self.sizes if size is not None)

    @property
    def count(self) -> int:
        """Elements of a sample."""
        return math.prod(self.features)

    @property
    def batch(self) -> int | None:
        """Which axis is the batch."""
        return self.sizes.index(None) if None in self.sizes else None

    @property
    def contiguous(self) -> bool:
        """Whether elements of a sample follow each other in memory."""
        pairs = [(s, t) for s, t in zip(self.sizes, self.strides, strict=True) if s is not None and s != 1]
        return [t for _, t in pairs] == list(row_major([s for s, _ in pairs]))

    def element(self, indices: Sequence[str]) -> str:
        """C++ expression of an element in lane r; `indices` one for each of `sizes`, ignored for the batch."""
        if self.number:
            return self.number
        along = zip(indices, self.sizes, self.strides, strict=True)
        terms = [f"{i} * {step}" for i, size, step in along if step and size != 1]
        place = " + ".join(terms) or "0"
        return f"{self.base}[({place}) * R + r]" if self.lanes else f"{self.base}[{place}]"

    def moved(self, elements: int | str) -> str:
        """Address that many elements later; a number, or an expression in C++."""
        if not elements:
            return self.base
        return f"({self.base} + {elements} * R)" if self.lanes else f"({self.base} + {elements})"

    # ---- views: no elements are touched --------------------------------------------------------------------------
    def permuted(self, order: Sequence[int]) -> Value:
        """With its axes in another order."""
        return replace(self, sizes=tuple(self.sizes[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def selected(self, axis: int, index: int) -> Value:
        """One slice, without its axis."""
        if self.sizes[axis] is None:
            raise NotRowwiseError("it picks single samples")
        sizes, strides = list(self.sizes), list(self.strides)
        index += (sizes[axis] or 0) if index < 0 else 0
        return replace(
            self, base=self.moved(index * strides[axis]), sizes=(*sizes[:axis], *sizes[axis + 1 :]),
            strides=(*strides[:axis], *strides[axis + 1 :]),
        )  # fmt: skip

    def sliced(self, axis: int, start: int | str, size: int, step: int) -> Value:
        """Every `step`-th of an axis, `size` of them."""
        sizes, strides = list(self.sizes), list(self.strides)
        first = self.moved(f"{start} * {strides[axis]}" if isinstance(start, str) else start * strides[axis])
        sizes[axis], strides[axis] = size, strides[axis] * step
        return replace(self, base=first, sizes=tuple(sizes), strides=tuple(strides))

    def flipped(self, axes: Sequence[int]) -> Value:
        """With some axes the other way round."""
        strides, first = list(self.strides), 0
        for axis in axes:
            size = self.sizes[axis]
            if size is None:
                raise NotRowwiseError("it takes the samples in another order")
            first, strides[axis] = first + (size - 1) * strides[axis], -strides[axis]
        return replace(self, base=self.moved(first), strides=tuple(strides))

    def expanded(self, sizes: Sequence[Size]) -> Value:
        """Broadcast to `sizes`."""
        missing = len(sizes) - len(self.sizes)
        strides = [0] * missing
        for old, new, stride in zip(self.sizes, sizes[missing:], self.strides, strict=True):
            strides.append(stride if old == new else 0)
        return replace(self, sizes=tuple(sizes), strides=tuple(strides))

    def reshaped(self, sizes: Sequence[Size]) -> Value | None:
        """With other sizes over the same elements; None if they have to be copied first.

        Raises:
            NotRowwiseError: the batch would be mixed with other axes.
        """
        if None in self.sizes and None not in sizes:
            raise NotRowwiseError("it reshapes the batch away")
        if None in self.sizes and _before(self.sizes) != _before(sizes):
            raise NotRowwiseError("it reshapes the batch together with other axes")
        old = [(s, t) for s, t in zip(self.sizes, self.strides, strict=True) if s is not None and s != 1]
        new = [s for s in sizes if s is not None and s != 1]
        if [s for s, _ in old] == new:
            strides = iter([t for _, t in old])
        elif self.contiguous:
            strides = iter(row_major(new))
        else:
            return None
        placed = tuple(0 if s is None or s == 1 else next(strides) for s in sizes)
        return replace(self, sizes=tuple(sizes), strides=placed)


def _before(sizes: Sequence[Size]) -> int:
    """Elements before the batch."""
    return math.prod(size for size in sizes[: list(sizes).index(None)] if size is not None)


def row_major(sizes: Sequence[int]) -> tuple[int, ...]:
    """Strides of elements one after the other."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def stored(kind: str, sizes: Sequence[Size], base: str, **more: Any) -> Value:
    """A value at `base`, its elements one after the other."""
    steps = iter(row_major([size for size in sizes if size is not None]))
    return Value(kind, tuple(sizes), base, tuple(0 if size is None else next(steps) for size in sizes), **more)


def loops(ranges: Sequence[tuple[str, int]]) -> list[str]:
    """Heads of nested loops, the lanes' one not among them."""
    return [f"for (long {name} = 0; {name} < {size}; {name}++)" for name, size in ranges]


def constant(number: Any, sizes: Sequence[Size], truth: bool) -> Value:
    """A number of any shape."""
    if truth:
        return Value(SHARED, tuple(sizes), number="true" if number else "false", truth=True)
    known = {math.inf: "T(INFINITY)", -math.inf: "T(-INFINITY)"}
    literal = "T(NAN)" if number != number else known.get(number, f"T({float(number)!r})")
    return Value(SHARED, tuple(sizes), number=literal)


def kind_of(operands: Sequence[Value], entry: Pointwise) -> str:
    """What an operation on such operands is.

    Raises:
        NotRowwiseError: it is not linear in a sum over samples.
    """
    summed = [operand for operand in operands if operand.kind in SUMS]
    if not summed:
        return next((kind for kind in (ROW, MOMENT) if any(o.kind == kind for o in operands)), SHARED)
    kind = summed[0].kind
    others = [operand for operand in operands if operand not in summed]
    same = all(operand.kind == kind for operand in summed)
    allowed = {PARTIAL: (SHARED, MOMENT, ROW), TALLY: (SHARED, MOMENT), LATE: (SHARED,)}[kind]
    steady = all(o.kind == SHARED or (o.kind in allowed and o.batch is None) for o in others)
    zeros = all(o.number in ("T(0.0)", "T(-0.0)") for o in others)
    fits = {"sum": zeros, "either": len(summed) == 1, "left": summed == [operands[0]]}.get(entry.linear, False)
    if not (same and steady and fits):
        raise NotRowwiseError(USES_A_SUM)
    return kind

"""Operations that move elements or gather them along axes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from odenet.compiled.rowwise.operations import Pointwise
from odenet.compiled.rowwise.values import (
    LANES,
    PARTIAL,
    ROW,
    SUMS,
    NotRowwiseError,
    Size,
    Value,
    kind_of,
    loops,
    row_major,
)

if TYPE_CHECKING:
    from odenet.compiled.rowwise.program import Program

aten, prims = torch.ops.aten, torch.ops.prims


def view(program: Program, target: Any, args: Any, sizes: tuple[Size, ...]) -> Value | None:
    """The same elements seen otherwise; None if the operation is no view."""
    rank = lambda: program.of(args[0]).sizes  # noqa: E731
    if target is aten.permute.default:
        return program.stored(program.of(args[0])).permuted([i % len(sizes) for i in args[1]])
    if target is aten.t.default:
        return program.stored(program.of(args[0])).permuted(range(len(sizes))[::-1])
    if target is aten.transpose.int:
        order = list(range(len(sizes)))
        a, b = args[1] % len(sizes), args[2] % len(sizes)
        order[a], order[b] = order[b], order[a]
        return program.stored(program.of(args[0])).permuted(order)
    if target is aten.select.int:
        return program.stored(program.of(args[0])).selected(args[1] % len(rank()), args[2])
    if target is aten.slice.Tensor:
        value, axis = program.of(args[0]), (args[1] if len(args) > 1 else 0) % len(rank())
        if value.sizes[axis] is None:
            if sizes[axis] is None and args[2:3] in ((), (None,), (0,)) and args[4:5] in ((), (1,)):
                return value
            raise NotRowwiseError("it picks single samples")
        start = (args[2] if len(args) > 2 else 0) or 0
        first = begun(program, start, value.sizes[axis] or 0)
        return program.stored(value).sliced(axis, first, sizes[axis] or 0, args[4] if len(args) > 4 else 1)
    if target in (aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default):
        return reshaped(program, program.of(args[0]), sizes)
    if target in (prims.rev.default, aten.flip.default):
        return program.stored(program.of(args[0])).flipped([axis % len(sizes) for axis in args[1]])
    if target is aten.expand.default:
        return program.stored(program.of(args[0])).expanded(sizes)
    return None


def several(program: Program, target: Any, args: Any, kwargs: Any) -> list[Value]:
    """The results of an operation that has several."""
    value = program.stored(program.of(args[0]))
    rank = len(value.sizes)
    if target is aten.unbind.int:
        axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
        return [value.selected(axis, i) for i in range(value.sizes[axis] or 1)]
    if target in (aten.split.Tensor, aten.split_with_sizes.default):
        axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % rank
        whole = value.sizes[axis]
        if whole is None:
            raise NotRowwiseError("it picks single samples")
        lengths = args[1]
        if isinstance(lengths, int):
            lengths = [min(lengths, whole - start) for start in range(0, whole, lengths)]
        starts = itertools.accumulate([0, *lengths])
        return [value.sliced(axis, start, size, 1) for start, size in zip(starts, lengths, strict=False)]
    raise NotRowwiseError(f"there is no form of {target} for it")


def reshaped(program: Program, value: Value, sizes: tuple[Size, ...]) -> Value:
    """With other sizes over the same elements."""
    if value.number:
        return replace(value, sizes=sizes)
    value = program.stored(value)
    if value.batch is None and None in sizes:
        raise NotRowwiseError("it reshapes other axes into the batch")
    viewed = value.reshaped(sizes)
    return viewed if viewed is not None else program.copied(value).reshaped(sizes)  # type: ignore[return-value]


def reduced(program: Program, target: Any, args: Any, kwargs: Any, sizes: tuple[Size, ...]) -> Value:
    """A sum, a largest or a smallest element along some axes."""
    value = program.stored(program.of(args[0]))
    axes = args[1] if len(args) > 1 and args[1] else range(len(value.sizes))
    axes = {axis % len(value.sizes) for axis in ([axes] if isinstance(axes, int) else axes)}
    if value.batch in axes:
        if target not in (aten.sum.dim_IntList, aten.sum.default) or value.kind != ROW:
            raise NotRowwiseError("it compares samples with each other")
        value = replace(value, kind=PARTIAL, sizes=tuple(1 if s is None else s for s in value.sizes))
    if all(value.sizes[axis] == 1 for axis in axes):
        return value.reshaped(sizes) or reshaped(program, value, sizes)
    if value.kind in SUMS and target not in (aten.sum.dim_IntList, aten.sum.default):
        raise NotRowwiseError("it compares samples with each other")
    start, join = {
        aten.amax.default: ("-INFINITY", "({1} > {0} || {1} != {1} ? {1} : {0})"),
        aten.amin.default: ("INFINITY", "({1} < {0} || {1} != {1} ? {1} : {0})"),
    }.get(target, ("T(0)", "{0} + {1}"))
    kept = [axis for axis in range(len(value.sizes)) if axis not in axes and value.sizes[axis] is not None]
    result = program.new(value.kind, sizes, value.backward)
    out = [f"i{axis}" for axis in kept]
    place = " + ".join(f"{i} * {s}" for i, s in zip(out, row_major([value.sizes[a] or 1 for a in kept]), strict=True))
    into = f"{result.base}[({place or '0'}){' * R + r' if value.lanes else ''}]"
    indices = [f"i{axis}" for axis in range(len(value.sizes))]
    lanes = LANES if value.lanes else ""
    inner = f"{lanes}{into} = {join.format(into, value.element(indices))};"
    lines = loops([(i, value.sizes[a] or 1) for i, a in zip(out, kept, strict=True)])
    program.write(result, [*lines, f"{lanes}{into} = {start};"])
    more = loops([(f"i{axis}", value.sizes[axis] or 1) for axis in sorted(axes)])
    program.write(result, [*lines, *more, inner])
    return result


def joined(program: Program, args: Any, kwargs: Any, sizes: tuple[Size, ...]) -> Value:
    """Values one after the other along an axis."""
    parts = [program.of(part) for part in args[0]]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(sizes)
    if sizes[axis] is None:
        raise NotRowwiseError("it joins batches")
    result, start = program.new(kind_of(parts, Pointwise("", linear="sum")), sizes, any(p.backward for p in parts)), 0
    for part in parts:
        size = part.sizes[axis] or 0
        program.copy(part, result.sliced(axis, start, size, 1))
        start += size
    return result


def scattered(program: Program, target: Any, args: Any, kwargs: Any, sizes: tuple[Size, ...]) -> Value:
    """A value of which a part is replaced."""
    whole, part = program.of(args[0]), program.of(args[1])
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(sizes)
    if sizes[axis] is None:
        if target is aten.slice_scatter.default and part.sizes == sizes:
            return part
        raise NotRowwiseError("it writes single samples")
    kind = kind_of([whole, part], Pointwise("", linear="sum"))
    result = program.new(kind, sizes, whole.backward or part.backward)
    program.copy(whole, result)
    if target is aten.select_scatter.default:
        program.copy(part, result.selected(axis, args[3]))
    else:
        start = (args[3] if len(args) > 3 else kwargs.get("start", 0)) or 0
        step, first = args[5] if len(args) > 5 else kwargs.get("step", 1), begun(program, start, sizes[axis] or 0)
        program.copy(part, result.sliced(axis, first, part.sizes[axis] or 0, step))
    return result


def begun(program: Program, start: Any, length: int) -> int | str:
    """Where a slice of an axis of some length begins; an expression in C++ where it is known at the call only."""
    if isinstance(start, Node):
        if start not in program.integers:
            raise NotRowwiseError("it computes with the size of the batch")
        return program.integers[start]
    return min(max(start + length if start < 0 else start, 0), length)


def laid_out_anew(node: Node) -> bool:
    """Whether a view with given strides is the same elements one after the other, with other sizes."""
    of: Any = node.args[0]
    whole, view = of.meta["val"], node.meta["val"]
    starts = whole.storage_offset() == view.storage_offset()
    return starts and whole.is_contiguous() and view.is_contiguous() and whole.numel() == view.numel()

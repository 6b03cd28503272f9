"""F, or F and its vector-Jacobian product, as C++ that works on lanes of samples, written from its graph.

A sample is a lane: element e of a quantity of R samples lies at [e * R + r]. That makes every product one of lanes with
numbers, whatever the sizes are, and keeps all that an evaluation needs of R samples in the first-level cache.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from odenet.compiled.rowwise.operations import CONSTANT, POINTWISE, RESHAPE, SAME, Pointwise, special
from odenet.compiled.rowwise.products import product
from odenet.compiled.rowwise.values import (
    LANES,
    LATE,
    PARTIAL,
    ROW,
    SHARED,
    NotRowwiseError,
    Size,
    Value,
    row_major,
    stored,
)

aten, prims = torch.ops.aten, torch.ops.prims
PARTS = ("prepare", "forward", "backward", "finish")
SECTIONS = {SHARED: "prepare", LATE: "finish"}


@dataclass
class Memory:
    """A workspace: its name in C++ and how many elements it has."""

    name: str
    size: int = 0

    def take(self, elements: int, lanes: bool) -> str:
        """Address of the next ones."""
        start, self.size = self.size, self.size + (elements if lanes else -(-elements // 16) * 16)
        return f"({self.name} + {start} * R)" if lanes else f"({self.name} + {start})"


@dataclass
class Program:
    """C++ of a graph.

    Args:
        graph: of core operations; its placeholders are given by `inputs`.
        inputs: what the placeholders are; None for sizes.
        dtype: of all numbers.
        batch: the symbol of the batch in the graph's shapes.

    Attributes:
        code: lines of "prepare" (once for a solve), "forward", "backward" and "finish" (once, after all steps).
        kept: workspace of an evaluation, which its backward part reads.
        scratch: workspace of a backward part.
        shared: workspace of what is the same for all samples.
        sums: what is gathered over samples and steps.
        lane_sums: the same, still one for each lane.
        outputs: values of the graph's outputs.

    Raises:
        NotRowwiseError: the graph cannot be written so.
    """

    graph: Graph
    inputs: Sequence[Value | None]
    dtype: torch.dtype
    batch: str
    code: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in PARTS})
    kept: Memory = field(default_factory=lambda: Memory("w"))
    scratch: Memory = field(default_factory=lambda: Memory("b"))
    shared: Memory = field(default_factory=lambda: Memory("s"))
    late: Memory = field(default_factory=lambda: Memory("l"))
    sums: Memory = field(default_factory=lambda: Memory("g"))
    lane_sums: Memory = field(default_factory=lambda: Memory("(g + SUMS_OF_NUMBERS)"))
    outputs: list[Value | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values: dict[Node, Value] = {}
        self.several: dict[Node, list[Value]] = {}
        self.numbers = itertools.count()
        given = iter(self.inputs)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                value = next(given)
                if value is not None:
                    self.values[node] = value
            elif node.op == "output":
                self.outputs = [None if n is None else self._of(n) for n in node.args[0]]
            elif node.op != "call_function":
                raise NotRowwiseError(f"it holds {node.op} {node.target}")
            elif node.target is operator.getitem:
                self.values[node] = self.several[node.args[0]][node.args[1]]
            elif node.target is aten._local_scalar_dense.default:
                self.values[node] = self.number_of(node.args[0])
            elif isinstance(node.meta.get("val"), list | tuple):
                self.several[node] = self._several(node.target, node.args, node.kwargs)
            elif isinstance(node.meta.get("val"), Tensor):
                self.values[node] = self._node(node)
            elif node.target is not aten.sym_size.int:
                raise NotRowwiseError(f"it uses {node.target}")

    # ---- nodes ---------------------------------------------------------------------------------------------------
    def _node(self, node: Node) -> Value:
        target: Any = node.target
        args, kwargs = node.args, node.kwargs
        sizes, dtype = self._sizes(node.meta["val"]), node.meta["val"].dtype
        if dtype not in (self.dtype, torch.bool, torch.int64):
            raise NotRowwiseError(f"it computes in {dtype}")
        if target in CONSTANT:
            number = CONSTANT[target](args)
            if isinstance(number, Node):
                raise NotRowwiseError("it fills a tensor with a number that is not constant")
            return constant(number, sizes, dtype == torch.bool)
        if target in SAME:
            value = self._of(args[0])
            if value.truth and dtype == self.dtype:
                return self.pointwise(node, Pointwise("T({0})"), [value])
            return value
        if target in RESHAPE or (target is aten.as_strided.default and _laid_out_anew(node)):
            return self._reshaped(self._of(args[0]), sizes)
        if (view := self._view(target, args, sizes)) is not None:
            return view
        found = special(target, args, kwargs) or ((POINTWISE[target], args) if target in POINTWISE else None)
        if found is not None:
            return self.pointwise(node, found[0], [self._of(arg) for arg in found[1]])
        if target in (aten.mm.default, aten.bmm.default):
            return product(self, self.stored(self._of(args[0])), self.stored(self._of(args[1])))
        if target is aten.addmm.default and kwargs.get("beta", 1) == 1 and kwargs.get("alpha", 1) == 1:
            start, a, b = (self.stored(self._of(arg)) for arg in args[:3])
            return product(self, a, b, start)
        if target in (aten.sum.dim_IntList, aten.sum.default, aten.amax.default, aten.amin.default):
            return self._reduced(target, args, kwargs, sizes)
        if target is aten.cat.default:
            return self._joined(args, kwargs, sizes)
        if target in (aten.slice_scatter.default, aten.select_scatter.default):
            return self._scattered(target, args, kwargs, sizes)
        raise NotRowwiseError(f"there is no form of {target} for it")

    def _view(self, target: Any, args: Any, sizes: tuple[Size, ...]) -> Value | None:
        rank = lambda: self._of(args[0]).sizes  # noqa: E731
        if target is aten.permute.default:
            return self.stored(self._of(args[0])).permuted([i % len(sizes) for i in args[1]])
        if target is aten.t.default:
            return self.stored(self._of(args[0])).permuted(range(len(sizes))[::-1])
        if target is aten.transpose.int:
            order = list(range(len(sizes)))
            a, b = args[1] % len(sizes), args[2] % len(sizes)
            order[a], order[b] = order[b], order[a]
            return self.stored(self._of(args[0])).permuted(order)
        if target is aten.select.int:
            return self.stored(self._of(args[0])).selected(args[1] % len(rank()), args[2])
        if target is aten.slice.Tensor:
            value, axis = self._of(args[0]), (args[1] if len(args) > 1 else 0) % len(rank())
            if value.sizes[axis] is None:
                if sizes[axis] is None and args[2:3] in ((), (None,), (0,)) and args[4:5] in ((), (1,)):
                    return value
                raise NotRowwiseError("it picks single samples")
            start = (args[2] if len(args) > 2 else 0) or 0
            length = value.sizes[axis] or 0
            first = min(max(start + length if start < 0 else start, 0), length)
            return self.stored(value).sliced(axis, first, sizes[axis] or 0, args[4] if len(args) > 4 else 1)
        if target in (aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default):
            return self._reshaped(self._of(args[0]), sizes)
        if target is aten.expand.default:
            return self.stored(self._of(args[0])).expanded(sizes)
        return None

    def _several(self, target: Any, args: Any, kwargs: Any) -> list[Value]:
        value = self.stored(self._of(args[0]))
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

    def _reshaped(self, value: Value, sizes: tuple[Size, ...]) -> Value:
        if value.number:
            return replace(value, sizes=sizes)
        value = self.stored(value)
        if value.batch is None and None in sizes:
            raise NotRowwiseError("it reshapes other axes into the batch")
        viewed = value.reshaped(sizes)
        return viewed if viewed is not None else self.copied(value).reshaped(sizes)  # type: ignore[return-value]

    def _reduced(self, target: Any, args: Any, kwargs: Any, sizes: tuple[Size, ...]) -> Value:
        value = self.stored(self._of(args[0]))
        axes = args[1] if len(args) > 1 and args[1] else range(len(value.sizes))
        axes = {axis % len(value.sizes) for axis in ([axes] if isinstance(axes, int) else axes)}
        if value.batch in axes:
            if target not in (aten.sum.dim_IntList, aten.sum.default) or value.kind != ROW:
                raise NotRowwiseError("it compares samples with each other")
            value = replace(value, kind=PARTIAL, sizes=tuple(1 if s is None else s for s in value.sizes))
        if all(value.sizes[axis] == 1 for axis in axes):
            return value.reshaped(sizes) or self._reshaped(value, sizes)
        if value.kind in (PARTIAL, LATE) and target not in (aten.sum.dim_IntList, aten.sum.default):
            raise NotRowwiseError("it compares samples with each other")
        start, join = {
            aten.amax.default: ("-INFINITY", "({1} > {0} || {1} != {1} ? {1} : {0})"),
            aten.amin.default: ("INFINITY", "({1} < {0} || {1} != {1} ? {1} : {0})"),
        }.get(target, ("T(0)", "{0} + {1}"))
        kept = [axis for axis in range(len(value.sizes)) if axis not in axes and value.sizes[axis] is not None]
        result = self.new(value.kind, sizes, value.backward)
        out = [f"i{axis}" for axis in kept]
        place = " + ".join(
            f"{i} * {s}" for i, s in zip(out, row_major([value.sizes[a] or 1 for a in kept]), strict=True)
        )
        into = f"{result.base}[({place or '0'}){' * R + r' if value.lanes else ''}]"
        indices = [f"i{axis}" for axis in range(len(value.sizes))]
        lanes = LANES if value.lanes else ""
        inner = f"{lanes}{into} = {join.format(into, value.element(indices))};"
        lines = loops([(i, value.sizes[a] or 1) for i, a in zip(out, kept, strict=True)])
        self.write(result, [*lines, f"{lanes}{into} = {start};"])
        more = loops([(f"i{axis}", value.sizes[axis] or 1) for axis in sorted(axes)])
        self.write(result, [*lines, *more, inner])
        return result

    def _joined(self, args: Any, kwargs: Any, sizes: tuple[Size, ...]) -> Value:
        parts = [self._of(part) for part in args[0]]
        axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(sizes)
        if sizes[axis] is None:
            raise NotRowwiseError("it joins batches")
        result, start = self.new(kind_of(parts, Pointwise("", linear="sum")), sizes, any(p.backward for p in parts)), 0
        for part in parts:
            size = part.sizes[axis] or 0
            self.copy(part, result.sliced(axis, start, size, 1))
            start += size
        return result

    def _scattered(self, target: Any, args: Any, kwargs: Any, sizes: tuple[Size, ...]) -> Value:
        whole, part = self._of(args[0]), self._of(args[1])
        axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(sizes)
        if sizes[axis] is None:
            if target is aten.slice_scatter.default and part.sizes == sizes:
                return part
            raise NotRowwiseError("it writes single samples")
        kind = kind_of([whole, part], Pointwise("", linear="sum"))
        result = self.new(kind, sizes, whole.backward or part.backward)
        self.copy(whole, result)
        if target is aten.select_scatter.default:
            self.copy(part, result.selected(axis, args[3]))
        else:
            start = (args[3] if len(args) > 3 else kwargs.get("start", 0)) or 0
            step, length = args[5] if len(args) > 5 else kwargs.get("step", 1), sizes[axis] or 0
            first = min(max(start + length if start < 0 else start, 0), length)
            self.copy(part, result.sliced(axis, first, part.sizes[axis] or 0, step))
        return result

    # ---- elements ------------------------------------------------------------------------------------------------
    def pointwise(self, node: Node, entry: Pointwise, operands: Sequence[Value]) -> Value:
        """An operation element by element: written where it is used if that is one place, else stored."""
        sizes = self._sizes(node.meta["val"])
        kind = kind_of(operands, entry)
        backward = any(operand.backward for operand in operands)
        operands = [o if o.pending is None or o.sizes == sizes else self.stored(o) for o in operands]
        value = Value(kind, sizes, truth=entry.truth, pending=(entry, tuple(operands)), backward=backward)
        user = next(iter(node.users), None)
        again = user is not None and (user.target in POINTWISE or special(user.target, user.args, user.kwargs or {}))
        # a value of the forward part that the backward part uses alone is kept as what it is computed from
        return value if len(node.users) == 1 and again else self.stored(value)

    def expression(self, value: Value, indices: Sequence[str], body: list[str], known: dict[int, str]) -> str:
        """An element in C++; what it takes is appended to the body of the loop, each thing once."""
        if value.pending is None:
            return value.element(indices[len(indices) - len(value.sizes) :])
        if id(value) not in known:
            entry, operands = value.pending
            parts = [self.expression(operand, indices, body, known) for operand in operands]
            known[id(value)] = name = f"v{next(self.numbers)}"
            body.append(f"const {'bool' if value.truth else 'T'} {name} = {entry.template.format(*parts)};")
        return known[id(value)]

    def stored(self, value: Value) -> Value:
        """The same, in memory."""
        if value.pending is None and not value.number:
            return value
        return self.copied(value)

    def rowed(self, value: Value) -> Value:
        """In memory, and with one number for each lane if it has a batch."""
        if value.kind != SHARED or value.batch is None:
            return self.stored(value)
        result = self.new(ROW, value.sizes, False)
        self.copy(value, result)
        return result

    def copied(self, value: Value) -> Value:
        """The same, its elements one after the other."""
        result = self.new(value.kind, value.sizes, value.backward)
        self.copy(value, result)
        return replace(result, truth=value.truth)

    def copy(self, value: Value, into: Value) -> None:
        """Write the elements of one value, broadcast, to the place of another."""
        indices = [f"i{axis}" if size is not None else "0" for axis, size in enumerate(into.sizes)]
        body: list[str] = []
        result = self.expression(value, indices, body, {})
        body.append(f"{into.element(indices)} = {result};")
        nest = loops([(f"i{axis}", size) for axis, size in enumerate(into.sizes) if size is not None])
        self.write(into, [*nest, (LANES if into.lanes else "") + "{ " + " ".join(body) + " }"])

    def new(self, kind: str, sizes: Sequence[Size], backward: bool) -> Value:
        """Memory for a value."""
        elements = math.prod(size for size in sizes if size is not None)
        memory = {SHARED: self.shared, LATE: self.late}.get(kind, self.scratch if backward else self.kept)
        lanes = kind in (ROW, PARTIAL)
        return stored(kind, sizes, memory.take(elements, lanes), backward=backward)

    def write(self, value: Value, lines: Sequence[str]) -> None:
        """Append what computes a value to the section that it belongs to."""
        section = SECTIONS.get(value.kind, "backward" if value.backward else "forward")
        self.code[section] += lines

    def number_of(self, arg: Any) -> Value:
        """A number that is known before the walk."""
        value = self._of(arg)
        if value.kind != SHARED:
            raise NotRowwiseError("it takes a number out of what it computes")
        return value

    def _of(self, arg: Any) -> Value:
        if isinstance(arg, Node):
            if arg not in self.values:
                raise NotRowwiseError("it computes with the size of the batch")
            return self.values[arg]
        if isinstance(arg, bool | int | float):
            return constant(arg, (), isinstance(arg, bool))
        raise NotRowwiseError(f"it takes a {type(arg).__name__}")

    def _sizes(self, value: Tensor) -> tuple[Size, ...]:
        sizes: list[Size] = []
        for size in value.shape:
            if isinstance(size, int):
                sizes.append(size)
            elif str(size.node.expr) == self.batch:
                sizes.append(None)
            else:
                raise NotRowwiseError("it reshapes the batch together with other axes")
        if sizes.count(None) > 1:
            raise NotRowwiseError("it compares samples with each other")
        return tuple(sizes)


def _laid_out_anew(node: Node) -> bool:
    """Whether a view with given strides is the same elements one after the other, with other sizes."""
    of: Any = node.args[0]
    whole, view = of.meta["val"], node.meta["val"]
    starts = whole.storage_offset() == view.storage_offset()
    return starts and whole.is_contiguous() and view.is_contiguous() and whole.numel() == view.numel()


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
    summed = [operand for operand in operands if operand.kind in (PARTIAL, LATE)]
    if not summed:
        return ROW if any(operand.kind == ROW for operand in operands) else SHARED
    kind = summed[0].kind
    others = [operand for operand in operands if operand not in summed]
    same = all(operand.kind == kind for operand in summed)
    steady = all(o.kind == SHARED or (kind == PARTIAL and o.batch is None) for o in others)
    zeros = all(o.number in ("T(0.0)", "T(-0.0)") for o in others)
    fits = {"sum": zeros, "either": len(summed) == 1, "left": summed == [operands[0]]}.get(entry.linear, False)
    if not (same and steady and fits):
        raise NotRowwiseError("it uses a sum over the samples, and not only to add to it")
    return kind

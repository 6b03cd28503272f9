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

from odenet.compiled.rowwise import shapes
from odenet.compiled.rowwise.operations import CONSTANT, POINTWISE, RESHAPE, SAME, Pointwise, special
from odenet.compiled.rowwise.products import product, tallied
from odenet.compiled.rowwise.values import (
    LANES,
    LATE,
    MOMENT,
    PARTIAL,
    ROW,
    SHARED,
    TALLY,
    NotRowwiseError,
    Size,
    Value,
    constant,
    kind_of,
    loops,
    stored,
)

aten, prims = torch.ops.aten, torch.ops.prims
PARTS = ("prepare", "moment", "forward", "backward", "finish")
SECTIONS = {SHARED: "prepare", MOMENT: "moment", TALLY: "backward", LATE: "finish"}
INTEGERS = {operator.add: "+", operator.sub: "-", operator.mul: "*"}


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
        inputs: what the placeholders are; None for sizes, an expression in C++ for other integers.
        dtype: of all numbers.
        batch: the symbol of the batch in the graph's shapes.
        sums: what sums over the samples are, "late", "tally", or "partial".

    Attributes:
        code: lines of "prepare" (once for a solve), "moment" (once for a time), "forward", "backward" and "finish"
            (once, after all steps).
        kept: workspace of an evaluation, which its backward part reads.
        scratch: workspace of a backward part.
        shared: workspace of what is the same for all samples.
        moments: workspace of what depends on the time alone.
        tallies: workspace of a backward part for sums over the samples.
        gathered: what is gathered over samples and steps.
        of_time: numbers for each lane that depend on the time alone.
        lane_sums: as `gathered`, still one for each lane.
        outputs: values of the graph's outputs.

    Raises:
        NotRowwiseError: the graph cannot be written so.
    """

    graph: Graph
    inputs: Sequence[Value | str | None]
    dtype: torch.dtype
    batch: str
    sums: str = LATE
    code: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in PARTS})
    kept: Memory = field(default_factory=lambda: Memory("w"))
    scratch: Memory = field(default_factory=lambda: Memory("b"))
    shared: Memory = field(default_factory=lambda: Memory("s"))
    late: Memory = field(default_factory=lambda: Memory("l"))
    moments: Memory = field(default_factory=lambda: Memory("m"))
    tallies: Memory = field(default_factory=lambda: Memory("(b + SCRATCH_SIZE * R)"))
    gathered: Memory = field(default_factory=lambda: Memory("g"))
    lane_sums: Memory = field(default_factory=lambda: Memory("(g + SUMS_OF_NUMBERS)"))
    outputs: list[Value | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values: dict[Node, Value] = {}
        self.several: dict[Node, list[Value]] = {}
        self.integers: dict[Node, str] = {}
        self.numbers, self.of_time = itertools.count(), 0
        given = iter(self.inputs)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                value = next(given)
                if isinstance(value, str):
                    self.integers[node] = value
                elif value is not None:
                    self.values[node] = value
            elif node.op == "output":
                self.outputs = [None if n is None else self.of(n) for n in node.args[0]]
            elif node.op != "call_function":
                raise NotRowwiseError(f"it holds {node.op} {node.target}")
            elif node.target is operator.getitem:
                self.values[node] = self.several[node.args[0]][node.args[1]]
            elif node.target is aten._local_scalar_dense.default:
                self.values[node] = self.number_of(node.args[0])
            elif isinstance(node.meta.get("val"), list | tuple):
                self.several[node] = shapes.several(self, node.target, node.args, node.kwargs)
            elif isinstance(node.meta.get("val"), Tensor):
                self.values[node] = self._node(node)
            elif node.target in INTEGERS and all(isinstance(a, int) or a in self.integers for a in node.args):
                a, b = (self.integers.get(arg, arg) for arg in node.args)
                self.integers[node] = f"({a} {INTEGERS[node.target]} {b})"
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
            value = self.of(args[0])
            if value.truth and dtype == self.dtype:
                return self.pointwise(node, Pointwise("T({0})"), [value])
            return value
        if target in RESHAPE or (target is aten.as_strided.default and shapes.laid_out_anew(node)):
            return shapes.reshaped(self, self.of(args[0]), sizes)
        if (view := shapes.view(self, target, args, sizes)) is not None:
            return view
        found = special(target, args, kwargs) or ((POINTWISE[target], args) if target in POINTWISE else None)
        if found is not None:
            return self.pointwise(node, found[0], [self.of(arg) for arg in found[1]])
        if target in (aten.mm.default, aten.bmm.default):
            return product(self, self.stored(self.of(args[0])), self.stored(self.of(args[1])))
        if target is aten.addmm.default and kwargs.get("beta", 1) == 1 and kwargs.get("alpha", 1) == 1:
            start, a, b = (self.stored(self.of(arg)) for arg in args[:3])
            return product(self, a, b, start)
        if target in (aten.sum.dim_IntList, aten.sum.default, aten.amax.default, aten.amin.default):
            return shapes.reduced(self, target, args, kwargs, sizes)
        if target is aten.cat.default:
            return shapes.joined(self, args, kwargs, sizes)
        if target in (aten.slice_scatter.default, aten.select_scatter.default):
            return shapes.scattered(self, target, args, kwargs, sizes)
        raise NotRowwiseError(f"there is no form of {target} for it")

    # ---- elements ------------------------------------------------------------------------------------------------
    def pointwise(self, node: Node, entry: Pointwise, operands: Sequence[Value]) -> Value:
        """An operation element by element: written where it is used if that is one place, else stored."""
        sizes = self._sizes(node.meta["val"])
        backward = any(operand.backward for operand in operands)
        operands = [o if o.pending is None or o.sizes == sizes else self.stored(o) for o in operands]
        if any(operand.kind == TALLY for operand in operands):
            operands = [tallied(self, operand) for operand in operands]
        value = Value(
            kind_of(operands, entry), sizes, truth=entry.truth, pending=(entry, tuple(operands)), backward=backward
        )
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
        if not value.common or value.batch is None:
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
        memory = {SHARED: self.shared, MOMENT: self.moments, TALLY: self.tallies, LATE: self.late}.get(
            kind, self.scratch if backward else self.kept
        )
        lanes = kind in (ROW, PARTIAL)
        if kind == ROW and None not in sizes and not backward:
            self.of_time += elements
        return stored(kind, sizes, memory.take(elements, lanes), backward=backward)

    def write(self, value: Value, lines: Sequence[str]) -> None:
        """Append what computes a value to the section that it belongs to."""
        section = SECTIONS.get(value.kind, "backward" if value.backward else "forward")
        self.code[section] += lines

    def number_of(self, arg: Any) -> Value:
        """A number that is known before the walk, or made of the time alone."""
        value = self.of(arg)
        if value.kind not in (SHARED, MOMENT) and (value.kind != ROW or value.sizes):
            raise NotRowwiseError("it takes a number out of what it computes")
        return value

    def of(self, arg: Any) -> Value:
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

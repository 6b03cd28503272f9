"""F as a graph of core operations, found by Dynamo, whose guards say whether it is still the same F."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack, pop_dynamic_layer_stack
from torch.fx import GraphModule, Node

from odenet.compiled.rowwise.program import Program
from odenet.compiled.rowwise.values import LATE, MOMENT, PARTIAL, ROW, SHARED, TALLY, NotRowwiseError, Value, stored

MOST_ELEMENTS = 2**16
FEW_OF_TIME = 16


@dataclass
class Captured:
    """A graph of F.

    Attributes:
        graph: as Dynamo found it.
        fakes: its inputs without their data.
        state: place of the state among the inputs.
        time: place of the time among the inputs, or None.
        given: places of the inputs beside these, which are tensors, or integers that have changed.
        args: for those of them that are an argument of F, which.
        rows: those of them that hold a row for each sample.
        dtype: of all numbers.
        features: sizes of a sample.
        batch: the symbol of the batch.
    """

    graph: GraphModule
    fakes: list[Any]
    state: int
    time: int | None
    given: list[int]
    args: dict[int, int]
    rows: set[int]
    dtype: torch.dtype
    features: tuple[int, ...]
    batch: str

    @classmethod
    def of(cls, graph: GraphModule, own: Collection[int] | None = None) -> Captured:
        """What Dynamo found, if it can be written row by row.

        Args:
            graph: which it found.
            own: which of F's arguments hold a row for each sample; None for those that have the batch's size.

        Raises:
            NotRowwiseError: it cannot.
        """
        nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
        fakes = [node.meta["example_value"] for node in nodes]
        names = [_source(node) for node in nodes]
        if "L['x']" not in names:
            raise NotRowwiseError("it does not depend on the state")
        state = names.index("L['x']")
        x = fakes[state]
        sizes = x.shape
        if isinstance(sizes[0], int) or any(not isinstance(size, int) for size in sizes[1:]):
            raise NotRowwiseError("it holds for one size of the batch only")
        given, args, rows, batch = [], {}, set[int](), str(sizes[0].node.expr)
        for place, (name, fake) in enumerate(zip(names, fakes, strict=True)):
            if name in ("L['x']", "L['t']") or _symbol(fake) == batch:
                continue
            if isinstance(fake, torch.SymInt):
                given.append(place)
                continue
            if not isinstance(fake, Tensor) or not (_alike(fake, x) or _number(fake)):
                raise NotRowwiseError(f"it uses {name}, which is no tensor like the state")
            number, whole = _argument(name)
            row = number is not None and (_symbolic(fake) if own is None else number in own)
            if any(not isinstance(size, int) for size in fake.shape[row:]):
                raise NotRowwiseError(f"it uses {name}, which has a batch of its own")
            given.append(place)
            if row:
                rows.add(place)
            if number is not None and whole:
                args[place] = number
        time = names.index("L['t']") if "L['t']" in names else None
        for place in (*rows, *(() if time is None else (time,))):
            if fakes[place].dim() and _symbol(fakes[place].shape[0]) != batch:
                raise NotRowwiseError(f"it does not use {names[place]} sample by sample")
        if _transforms(graph):
            graph = _flat(graph, fakes)
        return cls(graph, fakes, state, time, given, args, rows, x.dtype, tuple(sizes[1:]), batch)

    def forward(self, one_time: bool = False) -> Program:
        """F.

        Args:
            one_time: whether all samples have one time in every evaluation.
        """
        graph = traced(lambda *inputs: [self.graph(*inputs)[0]], self.fakes)
        return self._of_time(graph, (), one_time, LATE)

    def joint(self, wanted: Sequence[int], one_time: bool = False) -> Program:
        """F, then its vector-Jacobian product for the state and the inputs at the places `wanted`.

        Args:
            wanted: places.
            one_time: as for `forward`.
        """
        places = (self.state, *wanted)

        def both(*inputs: Any) -> list[Tensor]:
            *given, cotangent = inputs

            def varied(*leaves: Tensor) -> Tensor:
                handed = list(given)
                for place, leaf in zip(places, leaves, strict=True):
                    handed[place] = leaf
                return self.graph(*handed)[0]

            k, pull, *_ = torch.func.vjp(varied, *(given[place] for place in places))
            return [k, *pull(cotangent)]

        x = self.fakes[self.state]
        with x.fake_mode:
            cotangent = torch.empty_like(x)  # a tensor of its own, or the two would be taken for one
        graph = traced(both, [*self.fakes, cotangent])
        more = (stored(ROW, (None, *self.features), "a", backward=True),)
        try:
            return self._of_time(graph, more, one_time, LATE)
        except NotRowwiseError:  # gradients of weights at a time are sums over the samples, but not yet over the steps
            return self._program(graph, more, one_time, TALLY if one_time else PARTIAL)

    def _of_time(self, graph: GraphModule, more: tuple[Value, ...], one_time: bool, sums: str) -> Program:
        """A program in which what depends on the time alone is found once for all samples, if it is much."""
        program = self._program(graph, more, False, sums)
        return self._program(graph, more, True, sums) if one_time and program.of_time > FEW_OF_TIME else program

    def _program(self, graph: GraphModule, more: tuple[Value, ...], moments: bool, sums: str) -> Program:
        values: list[Value | str | None] = []
        for place, fake in enumerate(self.fakes):
            if place == self.state:
                values.append(stored(ROW, (None, *self.features), "x"))
            elif place == self.time:
                of_all = Value(MOMENT if moments else ROW, (), "t")
                values.append(of_all if fake.dim() == 0 else stored(ROW, (None,), "t"))
            elif isinstance(fake, Tensor):
                kind, sizes = (ROW, (None, *fake.shape[1:])) if place in self.rows else (SHARED, tuple(fake.shape))
                values.append(stored(kind, sizes, f"p[{self.given.index(place)}]"))
            elif place in self.given:
                values.append(f"long(p[{self.given.index(place)}][0])")
            else:
                values.append(None)
        program = Program(graph.graph, [*values, *more], self.dtype, self.batch, sums)
        if program.kept.size > MOST_ELEMENTS:
            raise NotRowwiseError("what it computes of a sample is large")
        return program


def traced(function: Callable[..., Any], fakes: Sequence[Any]) -> GraphModule:
    """A function as a graph of core operations without mutations."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    aten = torch.ops.aten
    kept = {aten.addmm.default, aten.mm.default, aten.bmm.default, aten.tanh.default, aten.t.default}
    table = {target: form for target, form in select_decomp_table().items() if target not in kept}
    table |= {aten.var_mean.correction: var_mean, aten.var.correction: lambda *a, **k: var_mean(*a, **k)[0]}
    table |= {aten.mean.dim: mean, aten.addcmul.default: lambda x, a, b, *, value=1: x + a * b * value}
    pure = torch.func.functionalize(function, remove="mutations")
    with _mode_of(fakes), enable_python_dispatcher(), torch.no_grad(), levels_kept():
        graph = make_fx(pure, decomposition_table=table)(*fakes)
    graph.graph.eliminate_dead_code()
    return graph


def _flat(graph: GraphModule, fakes: Sequence[Any]) -> GraphModule:
    """A graph in which transforms of torch.func have been carried out: none of them takes others around it."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    if any(node.target is torch._C._set_grad_enabled and False in node.args for node in _nodes(graph)):
        raise NotRowwiseError("it holds transforms of torch.func beside a no_grad, which tracing them would lose")
    with _mode_of(fakes), enable_python_dispatcher(), torch.enable_grad(), levels_kept():
        return make_fx(lambda *inputs: graph(*inputs))(*fakes)


def _transforms(graph: GraphModule) -> bool:
    """Whether transforms of torch.func stand in a graph."""
    return any("functorch" in str(getattr(node.target, "__module__", "")) for node in _nodes(graph))


def _nodes(graph: GraphModule) -> Iterator[Node]:
    for module in graph.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


@contextlib.contextmanager
def levels_kept() -> Iterator[None]:
    """Leave no transform of torch.func behind where one fails: all that follows would stand inside of it."""
    before = len(get_interpreter_stack() or ())
    try:
        yield
    finally:
        while len(get_interpreter_stack() or ()) > before:
            pop_dynamic_layer_stack()


def _mode_of(fakes: Sequence[Any]) -> Any:
    return next(fake.fake_mode for fake in fakes if hasattr(fake, "fake_mode"))


def mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean over some axes, as a sum."""
    axes = _axes(x, dim)
    return x.sum(axes, keepdim) / math.prod(x.shape[axis] for axis in axes)


def var_mean(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Variance and mean over some axes, as sums."""
    axes = _axes(x, dim)
    count = math.prod(x.shape[axis] for axis in axes)
    center = x.sum(axes, True) / count
    squares = (x - center).square().sum(axes, keepdim)
    return squares / (count - (1 if correction is None else correction)), center if keepdim else center.squeeze(axes)


def _axes(x: Tensor, dim: Any) -> list[int]:
    axes = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return [axis % x.dim() for axis in axes]


def _argument(name: str) -> tuple[int | None, bool]:
    """Which of F's arguments an input is a part of, and whether it is all of it."""
    found = re.match(r"L\['args'\]\[(\d+)\]", name)
    return (int(found[1]), found[0] == name) if found else (None, False)


def _alike(fake: Tensor, x: Tensor) -> bool:
    return fake.dtype == x.dtype and fake.device == x.device


def _number(fake: Tensor) -> bool:
    """Whether it may be a number of Python's that has changed, which Dynamo hands over as a tensor."""
    return fake.dim() == 0 and fake.dtype == torch.float64 and not fake.requires_grad


def _symbolic(fake: Tensor) -> bool:
    return fake.dim() > 0 and isinstance(fake.shape[0], torch.SymInt)


def _symbol(size: Any) -> str:
    return str(size.node.expr) if isinstance(size, torch.SymInt) else str(size)


def _source(node: Node) -> str:
    argument = node.meta.get("grapharg")
    if argument is None:
        return ""
    name = argument.source.name
    return str(name() if callable(name) else name)

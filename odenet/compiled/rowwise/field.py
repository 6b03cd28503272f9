"""F as it was captured, what was made of it, and the tensors that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.wrap import wrap
from torch.fx import GraphModule

from odenet.compiled.rowwise.capture import Captured
from odenet.compiled.rowwise.values import NotRowwiseError
from odenet.compiled.scope import Leaves


@dataclass
class Field:
    """What was made of one graph of F.

    Attributes:
        graph: F as it was captured.
        walk: code of the walk, once it is made.
        backs: code of the way back, by the inputs that are differentiated; None where the gradient couples the samples.
    """

    graph: Captured
    walk: Any = None
    backs: dict[tuple[int, ...], Any] = field(default_factory=dict)

    def sizes(self) -> list[int]:
        """How many numbers of each of them a sample has, 0 if it is shared."""
        graph = self.graph
        return [math.prod(graph.fakes[place].shape[1:]) if place in graph.rows else 0 for place in graph.given]


class Use(NamedTuple):
    """A graph of F, and what it was handed.

    Attributes:
        field: what was made of the graph.
        flat: its inputs.
    """

    field: Field
    flat: tuple[Any, ...]

    def tensors(self) -> list[Tensor]:
        """The inputs beside state and time."""
        graph, flat = self.field.graph, self.flat
        given, dtype = [flat[place] for place in graph.given], graph.dtype
        return [
            torch.tensor([x], dtype=dtype) if isinstance(x, int)
            else x if x.dtype == dtype and x.is_contiguous()
            else x.detach().to(dtype).contiguous()
            for x in given
        ]  # fmt: skip

    def wanted(self, leaves: Leaves) -> dict[int, int]:
        """For each tensor that F uses its number among the inputs."""
        graph, found = self.field.graph, {}
        places = {id(self.flat[place]): number for number, place in enumerate(graph.given)}
        args = {graph.args[place]: number for number, place in enumerate(graph.given) if place in graph.args}
        for i, leaf in enumerate(leaves.tensors):
            argument = leaves.places[i - len(leaves.names)] if i >= len(leaves.names) else -1
            number = args.get(argument, places.get(id(leaf)))  # arguments may have been handed over as others
            if number is not None:
                found[i] = number
        return found

    def given(self) -> list[Tensor]:
        """The inputs beside state and time, as they were handed over."""
        given = [self.flat[place] for place in self.field.graph.given]
        return [x for x in given if isinstance(x, Tensor)]


def gradients(found: dict[int, Tensor], leaves: Leaves) -> list[Tensor]:
    """Those of all leaves, from those that were found; of one sample there may be two rows."""
    pairs = [(found.get(i), leaf) for i, leaf in enumerate(leaves.tensors)]
    return [
        torch.zeros_like(leaf) if part is None else part if part.shape == leaf.shape else part[: len(leaf)]
        for part, leaf in pairs
    ]


def captured(
    graph: GraphModule, note: Callable[[Field], None], own: Collection[int] | None = None
) -> Callable[..., tuple[Use | NotRowwiseError]]:
    """What Dynamo is to call in place of a graph of F: it says what F is, and what it was handed.

    Nothing of a call is kept, so that calls of several threads do not meet, and tensors go when their solve does.

    Args:
        graph: as Dynamo found it.
        note: told what F is, if it can be written row by row.
        own: as for `Captured.of`.
    """
    try:
        found = Field(Captured.of(graph, own))
    except NotRowwiseError as refusal:
        return lambda *flat, refusal=refusal: (refusal,)
    note(found)
    return lambda *flat: (Use(found, flat),)


def use_of(result: Any) -> Use:
    """What a call of `captured` said.

    Raises:
        NotRowwiseError: F is no function of single samples.
    """
    if isinstance(result, Use):
        return result
    raise result if isinstance(result, NotRowwiseError) else NotRowwiseError("there is no graph of it")


def called(F: Any, t: Tensor, x: Tensor, args: tuple[Any, ...]) -> Any:
    """F(t, x, *args), as Dynamo is to capture it: once, so nothing that is wrapped may change what lies outside."""
    return wrap(lambda t, x: F(t, x, *args), t, x)


def any_batch(x: Any) -> Any:
    """x, of which a graph is to take any number of samples, if it is a tensor."""
    if isinstance(x, Tensor) and x.dim():
        for name, mark in MARKS:
            setattr(x, name, mark.copy() if isinstance(mark, set) else mark)
    return x


def _marks() -> list[tuple[str, Any]]:
    """What Dynamo's own function sets on a tensor, which small solves do not wait for at every call."""
    x = torch.empty(2, 2)
    torch._dynamo.maybe_mark_dynamic(x, 0)
    return list(vars(x).items())


MARKS = _marks()

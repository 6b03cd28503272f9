"""The backend of the compiled solves: inductor, with cheaper forms of what small dynamics spend their time in on a CPU.

- `addmm` as a product and a sum, which is then fused into what comes next.
- A product of thin matrices as sums of products, which are fused too.
- `tanh` of float32 as a quotient of polynomials instead of the vector library's function, which takes five times as
  long. Its error is below 4 units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

THIN, FEW = 4, 128
BOUND = 7.90531110763549805
NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b of few rows, in a form that can be fused if another of its sizes is small."""
    rows: Any = a.shape[0]
    rows = rows if isinstance(rows, int) else rows.node.hint
    known = isinstance(a.shape[1], int) and isinstance(b.shape[1], int)
    if not known or rows is None or rows > FEW or a.device.type != "cpu":
        return NotImplemented
    if a.shape[1] <= THIN:
        total = a[:, 0:1] * b[0:1]
        for i in range(1, a.shape[1]):
            total = total + a[:, i : i + 1] * b[i : i + 1]
        return total
    if b.shape[1] <= THIN and a.shape[1] <= 256:
        return (a.unsqueeze(1) * b.t().unsqueeze(0)).sum(-1)
    return NotImplemented


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """bias + a b."""
    if beta != 1 or alpha != 1 or a.device.type != "cpu":
        return NotImplemented
    # with a leading dimension of one, which costs nothing, or inductor would make an addmm of it again
    return (torch.mm(a, b).unsqueeze(0) + bias).squeeze(0)


def tanh(x: Tensor) -> Tensor:
    """tanh of float32 by polynomials of degree 13 and 6."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    y = x.clamp(-BOUND, BOUND)
    square = y * y
    p = _horner(NUMERATOR, square) * y
    return torch.where(x.abs() < 4e-4, x, p / _horner(DENOMINATOR, square))


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        total = total * x + c
    return total


def backend(notice: Callable[[], None]) -> Callable[..., Any]:
    """A backend for `torch.compile`.

    Args:
        notice: called with every graph that is compiled.
    """
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    aten = torch.ops.aten

    def compile_graph(graph: Any, inputs: Any) -> Any:
        notice()
        table = dict(select_decomp_table())
        table |= {aten.addmm.default: addmm, aten.tanh.default: tanh, aten.mm.default: product}
        return compile_fx(graph, inputs, decompositions=table, config_patches={"cpp_wrapper": True})

    return compile_graph

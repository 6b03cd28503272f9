"""The backend of the compiled solves: inductor, with cheaper forms of what small dynamics spend their time in on a CPU.

- `addmm` as a product and a sum, which is then fused into what comes next.
- A product of thin matrices as sums of products, which are fused too; one of small matrices as loops that keep a row of
  the result in registers, which takes half as long as a call of the BLAS.
- `tanh` of float32 as a quotient of polynomials instead of the vector library's function, which takes five times as
  long. Its error is below 4 units in the last place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from odenet.compiled.report import RefusalError

THIN, FEW, MOST_LANES = 4, 128, 12
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
    """a b, in a form that can be fused if a size is small or a row of the result fits the registers."""
    rows, depth, columns = _hint(a.shape[0]), _hint(a.shape[1]), b.shape[1]
    if a.device.type != "cpu" or rows is None or depth is None or not isinstance(columns, int):
        return NotImplemented
    if rows <= FEW and isinstance(a.shape[1], int) and depth <= THIN:
        total = a[:, 0:1] * b[0:1]
        for i in range(1, depth):
            total = total + a[:, i : i + 1] * b[i : i + 1]
        return total
    if rows <= FEW and columns <= THIN and depth <= 2 * FEW:
        return (_stored(a).unsqueeze(1) * _stored(b.t()).unsqueeze(0)).sum(-1)
    width = lanes(a.dtype)
    if width and depth <= 2 * FEW and columns % width == 0 and columns <= MOST_LANES * width:
        a, b = _stored(a).unsqueeze(2), _stored(b).unsqueeze(0)
        return torch.cat([(a * b[:, :, i : i + width]).sum(1) for i in range(0, columns, width)], 1)
    return NotImplemented


def lanes(dtype: torch.dtype) -> int:
    """How many float32 a register of this machine holds; 0 for other numbers, of which inductor makes scalar code."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    return isa.nelements(dtype) if isa and dtype == torch.float32 else 0


def _stored(x: Tensor) -> Tensor:
    """x, row after row in memory, and not computed anew wherever it is used."""
    x = x.contiguous()
    return x.as_strided(x.shape, (x.shape[1], 1))


def _hint(size: Any) -> int | None:
    return size if isinstance(size, int) else size.node.hint


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


def backend(notice: Callable[[], None], small: bool = False) -> Callable[..., Any]:
    """A backend for `torch.compile`.

    Args:
        notice: called with every graph that is compiled.
        small: whether one thread walks faster than several that wait for each other.
    """
    from torch._inductor.compile_fx import compile_fx

    options: dict[str, Any] = {
        "cpp_wrapper": True,
        "cpp.enable_floating_point_contract_flag": "fast",
        "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": _version()},
    }
    if small:
        options["cpp.threads"] = 1

    def compile_graph(graph: Any, inputs: Any) -> Any:
        parts = [part for part in graph.modules() if isinstance(part, GraphModule)]
        if any(node.target == "item" for part in parts for node in part.graph.nodes):
            raise RefusalError("F makes a number of a tensor, as float(t) does, and Inductor rounds that to float32")
        notice()
        return compile_fx(graph, inputs, inner_compile=_inner, decompositions=table(), config_patches=options)

    return compile_graph


def _inner(graph: Any, inputs: Any, **given: Any) -> Any:
    """Inductor's own, with the table under a name: graphs with a table in their key are not found on disk again."""
    from torch._inductor.compile_fx import compile_fx_inner

    if "get_decomp_fn" in given:
        given["get_decomp_fn"] = table
    return compile_fx_inner(graph, inputs, **given)


def table() -> dict[Any, Callable[..., Any]]:
    """What operations are written as before code is made of them."""
    from torch._inductor.decomposition import select_decomp_table

    aten = torch.ops.aten
    ours = {aten.addmm.default: addmm, aten.tanh.default: tanh, aten.mm.default: product}
    return {**select_decomp_table(), **ours}


@cache
def _version() -> str:
    """What graphs that are kept on disk were made by."""
    return hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()

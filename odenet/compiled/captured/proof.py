"""Do the kernels compute what PyTorch's operations do? Tried where they are to run, before they are trusted."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from odenet.compiled.captured.adaptive import AdaptiveWalk
from odenet.compiled.captured.arithmetic import Arithmetic
from odenet.compiled.captured.field import Autocast
from odenet.compiled.captured.fixed import FixedWalk
from odenet.solvers.control import Controller
from odenet.solvers.tableau import Tableau

END, STEPS = 2.0, 4
WITHIN = {torch.float32: 1e-4, torch.float64: 1e-9}


class _Wave:
    """F(t, x) = sin 3x - t x."""

    def __init__(self, device: torch.device):
        self.autocast = Autocast(False, None)

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(3 * x) - t * x


def difference(found: Arithmetic, expected: Arithmetic, device: torch.device, dtype: torch.dtype) -> str | None:
    """In what two ways to compute a method's steps differ on a small problem, beyond rounding; None if in nothing.

    Args:
        found: one of them.
        expected: the other.
        device: where.
        dtype: of the state, float32 or float64.
    """
    x0 = torch.linspace(-2, 2, 2100, dtype=dtype, device=device).reshape(700, 3)  # more than a kernel's block
    ours, theirs = ({**_fixed(way, x0), **_adaptive(way, x0), **_back(way, x0)} for way in (found, expected))
    for name, value in theirs.items():
        if not torch.allclose(ours[name], value, rtol=WITHIN[dtype], atol=WITHIN[dtype], equal_nan=True):
            return name
    return None


def _fixed(way: Arithmetic, x0: Tensor) -> dict[str, Tensor]:
    walk = FixedWalk(_Wave(x0.device), way, x0, STEPS, True)  # pyright: ignore[reportArgumentType]
    walk.x.copy_(x0)
    walk.load([END * n / STEPS for n in range(STEPS + 1)], [END / STEPS] * STEPS)
    return {"given steps": walk(STEPS, [])[-1].clone(), "the record of given steps": walk.xs.clone()}


def _adaptive(way: Arithmetic, x0: Tensor) -> dict[str, Tensor]:
    if way.control is None:
        return {}
    tableau = way.tableau
    inside = [0.7] if tableau.dense is not None and not tableau.dense_c and tableau.fsal else []
    walk = AdaptiveWalk(_Wave(x0.device), way, x0, 64, True, False, len(inside))  # pyright: ignore[reportArgumentType]
    walk.load(x0, [END, 1.0, 1e-3, 1e-3, 0.0, END, 1e-12, 500], 0.0, END, inside)
    walked = walk()
    header = torch.tensor([float("nan")] if walked is None else walked[0][:2] + walked[0][5:7], dtype=torch.float64)
    states = torch.cat([chunk.states for chunk in walked[1]]) if walked else x0
    return {
        "the number of steps": header,
        "steps that are picked": walk.x.clone(),
        "their record": states,
        "an output inside them": walk.outputs.clone(),
    }


def _back(way: Arithmetic, x0: Tensor) -> dict[str, Tensor]:
    h, parts = torch.tensor(0.5, dtype=x0.dtype, device=x0.device), [x0.cos(), x0.sin(), x0.exp()]
    count = way.tableau.used
    found = {}
    for number, piece in enumerate(way.cotangents(count)):
        given = [parts[i % 3] for i in range(count - number)]
        result = piece(h, *given)
        if result is not None:
            found[f"the cotangent of stage {number + 1}"] = result
    return {**found, "a sum of cotangents": way.total()(*parts)}


@lru_cache
def proven(
    tableau: Tableau, control: tuple[Controller, int] | None, device: torch.device, dtype: torch.dtype
) -> str | None:
    """In what the kernels for a method differ from PyTorch's operations on a device, or None; found out once."""
    from odenet.compiled.captured.fused import Fused

    return difference(Fused(tableau, control, device), Arithmetic(tableau, control), device, dtype)

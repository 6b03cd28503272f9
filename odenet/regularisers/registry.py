"""The registry of regularisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from odenet.registry import Registry

Pull = Callable[[Tensor], Tensor]

regularisers: Registry[Any] = Registry("regulariser")
"""Each an integrand, which is a function (k, pull, probe) -> (batch,) of k = F(t, x), pull(v) = vᵀ ∂F/∂x, and a random
±1 tensor like x, drawn once for a solve; or an `Estimate` of each step."""

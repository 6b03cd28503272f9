"""Backends: who takes the steps. All take the same problem and return the same solution."""

from odenet.backends.native import Native
from odenet.backends.scipy import Scipy
from odenet.backends.torchdiffeq import Torchdiffeq
from odenet.solvers.registry import backends

backends.add("native", Native())
backends.add("torchdiffeq", Torchdiffeq())
backends.add("scipy", Scipy())


def list_backends() -> list[str]:
    """Names of the backends."""
    return list(backends)


__all__ = ["Native", "Scipy", "Torchdiffeq", "backends", "list_backends"]

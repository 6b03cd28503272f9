"""One solver of each kind, for tests that go through solvers times gradients times much else."""

from __future__ import annotations

from typing import Any

import pytest

from odenet.solvers import backends, solvers


def kind(name: str) -> tuple[Any, ...]:
    """What makes a native solver take another path through the code than its neighbours do."""
    stepper = solvers[name]
    tableau = getattr(stepper, "tableau", None)
    facts = (type(stepper), stepper.adaptive, getattr(stepper, "corrector", None))
    if tableau is None:
        return facts
    names = ("fsal", "coupled", "explicit_first")
    facts += tuple(getattr(tableau, name, None) for name in names)
    return (*facts, tableau.dense is None, bool(getattr(tableau, "dense_c", ())))


def representatives() -> set[str]:
    """The first solver of each kind."""
    first: dict[tuple[Any, ...], str] = {}
    for name in solvers:
        first.setdefault(kind(name), name)
    return set(first.values())


def kinds_of(backend: str) -> set[str]:
    """Of another backend's methods with fixed steps, with steps of their own, and of changing order, the highest."""
    found: dict[tuple[Any, ...], str] = {}
    for name, method in sorted(backends[backend].methods().items(), key=lambda item: item[1].order or 0):
        found[method.fixed, method.adaptive, method.order is None] = name
    return set(found.values())


def marks(name: str, backend: str = "native") -> tuple[pytest.MarkDecorator, ...]:
    """`slow` for a solver that another one stands for."""
    stand_in = representatives() if backend == "native" else kinds_of(backend)
    return () if name in stand_in else (pytest.mark.slow,)

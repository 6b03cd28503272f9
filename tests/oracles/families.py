"""One native solver of each kind, for tests that go through solvers times gradients times much else."""

from __future__ import annotations

from typing import Any

import pytest

from odenet.solvers import solvers


def kind(name: str) -> tuple[Any, ...]:
    """What makes a native solver take another path through the code than its neighbours do."""
    stepper = solvers[name]
    tableau = getattr(stepper, "tableau", None)
    facts = (type(stepper), stepper.adaptive, getattr(stepper, "corrector", None))
    if tableau is None:
        return facts
    return (*facts, getattr(tableau, "fsal", None), tableau.dense is None, bool(getattr(tableau, "dense_c", ())))


def representatives() -> set[str]:
    """The first solver of each kind."""
    first: dict[tuple[Any, ...], str] = {}
    for name in solvers:
        first.setdefault(kind(name), name)
    return set(first.values())


def marks(name: str, backend: str = "native") -> tuple[pytest.MarkDecorator, ...]:
    """`slow` for a native solver that another one stands for."""
    return (pytest.mark.slow,) if backend == "native" and name in set(solvers) - representatives() else ()

"""Shared by all tests: one thread, a seed, CUDA tests only where there is CUDA."""

import pytest
import torch

from odenet.solvers import solvers
from odenet.solvers.implicit import ImplicitRungeKutta


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def x() -> torch.Tensor:
    """A float64 batch of vectors, (4, 3)."""
    return torch.randn(4, 3, dtype=torch.float64)


@pytest.fixture
def pairs() -> torch.Tensor:
    """A float64 batch of vectors with two halves, as every method takes them, (4, 4)."""
    return torch.randn(4, 4, dtype=torch.float64)


IMPLICIT = {
    name: name in ("trapezoid", "radau5") for name, solver in solvers.items() if isinstance(solver, ImplicitRungeKutta)
}
EVERY_IMPLICIT = ("test_the_observed_order", "test_polynomials", "test_one_step", "tests/solvers/test_implicit.py")
LONG = (
    "finite_differences",
    "second_derivatives",
    "bouncing",
    "lotka",
    "dense_output",
    "tolerance_governs",
    "every_zero",
)


def _thinned(item):
    """Whether one of the implicit methods, whose steps are slow, is left to the others of its kind in a quick run."""
    name = getattr(item, "callspec", None) and item.callspec.params.get("solver")
    if name not in IMPLICIT or any(part in item.nodeid for part in EVERY_IMPLICIT):
        return False
    long = LONG if name == "radau5" else ("lotka", "tolerance_governs")
    return not IMPLICIT[name] or any(part in item.nodeid for part in long)


def pytest_ignore_collect(collection_path, config):
    """`-m gpu` looks into no other file, so that it runs where other tests' libraries are not installed."""
    if config.getoption("markexpr") != "gpu" or not collection_path.match("test_*.py"):
        return None
    return "mark.gpu" not in collection_path.read_text() or None


def pytest_collection_modifyitems(items):
    for item in items:
        if _thinned(item):
            item.add_marker(pytest.mark.slow)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

"""Shared by all tests: one thread, a seed, CUDA tests only where there is CUDA."""

import pytest
import torch


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


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

"""What the tests of compiled solves share."""

import pytest

from odenet import compiled
from odenet.compiled import per_sample, walk


@pytest.fixture
def traced(monkeypatch):
    """Graphs that are captured, and run without code being made of them."""
    graphs = []

    def backend(notice, small=False):
        def keep(graph, inputs):
            notice()
            graphs.append(graph)
            return graph

        return keep

    monkeypatch.setattr(walk, "backend", backend)
    monkeypatch.setattr(compiled, "_graphs", compiled._whole)
    monkeypatch.setattr(per_sample, "_graphs", per_sample._rounds)
    return graphs

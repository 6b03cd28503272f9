"""What the tests of captured walks share."""

import pytest

from odenet import compiled
from odenet.compiled.captured import CapturedGraphs


@pytest.fixture(autouse=True)
def captures(monkeypatch):
    """What solves on a CPU with compile=True are walked by here."""
    made = []

    def make(problem):
        made.append(CapturedGraphs(problem))
        return made[-1]

    monkeypatch.setattr(compiled, "_graphs", make)
    return made

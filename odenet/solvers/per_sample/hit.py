"""An event of one sample."""

from __future__ import annotations

from typing import NamedTuple


class SampleHit(NamedTuple):
    """An event that happened to a sample.

    Attributes:
        t: when.
        event: index of the event.
        element: index into the flattened value of its function for one sample.
        row: which of the steps of its round.
        sample: whose it is.
        segment: the segment of its way that the sample was on.
    """

    t: float
    event: int
    element: int
    row: int
    sample: int
    segment: int

"""What a solve did, counted as it happened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counts of one solve, or sums over several.

    Attributes:
        nfe: evaluations of F in the forward pass.
        nfe_backward: evaluations of F in the backward pass (recomputation, or the adjoint's solve).
        vjps: vector-Jacobian products of F in the backward pass.
        steps_backward: steps that the backward pass redid, undid, or took of its own.
        drift: relative error of x0 as a reversible method reconstructed it; the largest of several solves.
        accepted: accepted steps.
        rejected: rejected trial steps.
        forced: accepted steps whose error was above the tolerance, because they could not be smaller than h_min.
        h: accepted step sizes in order, positive.
    """

    nfe: int = 0
    nfe_backward: int = 0
    vjps: int = 0
    steps_backward: int = 0
    drift: float = 0.0
    accepted: int = 0
    rejected: int = 0
    forced: int = 0
    h: list[float] = field(default_factory=list)

    @classmethod
    def total(cls, parts: Iterable[Stats]) -> Stats:
        """The sum of several solves, e.g. of the blocks of a model."""
        total = cls()
        for part in parts:
            total.nfe += part.nfe
            total.nfe_backward += part.nfe_backward
            total.vjps += part.vjps
            total.steps_backward += part.steps_backward
            total.drift = max(total.drift, part.drift)
            total.accepted += part.accepted
            total.rejected += part.rejected
            total.forced += part.forced
            total.h += part.h
        return total

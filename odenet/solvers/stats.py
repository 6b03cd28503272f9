"""What a solve did, counted as it happened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SampleStats:
    """Counts of one solve for each sample of its batch, or sums over several solves of the same batch.

    Attributes:
        nfe: evaluations of F in the forward pass, shape (batch,), on the CPU like the others.
        nfe_backward: evaluations of F in the backward pass, shape (batch,).
        accepted: accepted steps, shape (batch,).
        rejected: rejected trial steps, shape (batch,).
        forced: accepted steps whose error was above the tolerance, shape (batch,).
        history: (samples, sizes of the steps that they accepted) in the order in which that happened.
        evaluated: evaluations of F for single rows in the forward pass: the sum of `nfe`; in a solve compiled as rounds
            over a batch those of rows that were done as well, and on the tape of gradient="autograd" those that were
            repeated because another sample gave NaN.
        padded: the same with what was computed beside it to fill the registers, where a solve is compiled row by row:
            lanes without a sample.
    """

    nfe: Tensor
    nfe_backward: Tensor
    accepted: Tensor
    rejected: Tensor
    forced: Tensor
    history: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)
    evaluated: int = 0
    padded: int = 0

    @classmethod
    def zeros(cls, batch: int) -> SampleStats:
        """Nothing has happened to any sample of a batch."""
        nothing = torch.zeros(batch, dtype=torch.long)
        return cls(nothing, nothing.clone(), nothing.clone(), nothing.clone(), nothing.clone())

    @property
    def h(self) -> list[Tensor]:
        """For each sample the sizes of its accepted steps in order, positive, float64."""
        counts = self.accepted.tolist()
        if not self.history:
            return [torch.zeros(0, dtype=torch.float64) for _ in counts]
        samples, sizes = (torch.cat(parts) for parts in zip(*self.history, strict=True))
        return list(sizes[samples.argsort(stable=True)].split(counts))

    def __len__(self) -> int:
        return len(self.nfe)

    def __add__(self, other: SampleStats) -> SampleStats:
        total = SampleStats.zeros(len(self))
        for name in COUNTS:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.history = [*self.history, *other.history]
        total.evaluated, total.padded = self.evaluated + other.evaluated, self.padded + other.padded
        return total


COUNTS = ("nfe", "nfe_backward", "accepted", "rejected", "forced")


@dataclass
class Stats:
    """Counts of one solve, or sums over several.

    Where every sample has its own steps, a call of F counts once in `nfe` however many samples it was for, the steps
    are summed over the samples, and `samples` has the counts of each.

    Attributes:
        nfe: evaluations of F in the forward pass. For implicit methods those of Newton's method are among them, and
            each product with the Jacobian in forward mode, which evaluates F too; a dense Jacobian is one, whatever its
            size.
        nfe_masked: further evaluations of F in the forward pass of a solve on a GPU that is compiled: those of steps
            that were taken after its end, because nobody had looked.
        nfe_backward: evaluations of F in the backward pass (recomputation, or the adjoint's solve).
        vjps: vector-Jacobian products of F in the backward pass, without those by which the linear equations of
            implicit methods are solved; Jacobian-vector products with `gradient="forward"`.
        steps_backward: steps that the backward pass redid, undid, or took of its own.
        drift: relative error of x0 as a reversible method reconstructed it; the largest of several solves.
        accepted: accepted steps.
        rejected: rejected trial steps.
        forced: accepted steps whose error was above the tolerance, because they could not be smaller than h_min.
        h: accepted step sizes in order, positive; empty where every sample has its own.
        samples: the counts of each sample, where it had its own steps.
    """

    nfe: int = 0
    nfe_masked: int = 0
    nfe_backward: int = 0
    vjps: int = 0
    steps_backward: int = 0
    drift: float = 0.0
    accepted: int = 0
    rejected: int = 0
    forced: int = 0
    h: list[float] = field(default_factory=list)
    samples: SampleStats | None = None

    @property
    def brief(self) -> str:
        """The counts of the forward pass, in words."""
        return f"nfe={self.nfe}, accepted={self.accepted}, rejected={self.rejected}"

    @classmethod
    def total(cls, parts: Iterable[Stats]) -> Stats:
        """The sum of several solves, e.g. of the blocks of a model; of samples, if all were of the same batch."""
        parts = list(parts)
        total = cls()
        for part in parts:
            total.nfe += part.nfe
            total.nfe_masked += part.nfe_masked
            total.nfe_backward += part.nfe_backward
            total.vjps += part.vjps
            total.steps_backward += part.steps_backward
            total.drift = max(total.drift, part.drift)
            total.accepted += part.accepted
            total.rejected += part.rejected
            total.forced += part.forced
            total.h += part.h
        each = [part.samples for part in parts if part.samples is not None]
        if each and all(len(samples) == len(each[0]) for samples in each):
            total.samples = sum(each[1:], start=each[0])
        return total

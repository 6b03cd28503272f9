"""The loop in which every sample has its own step; samples that are done leave the evaluated batch."""

from __future__ import annotations

from odenet.solvers.per_sample.adaptive import AdaptiveWalk
from odenet.solvers.per_sample.failures import Watch
from odenet.solvers.per_sample.fixed import FixedWalk
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.solution import SampleSolution


def integrate_samples(problem: SampleProblem, watch: Watch | None = None) -> SampleSolution:
    """Walk every sample of a batch with its own steps.

    Runs on the tape if gradients are enabled. Step sizes are constants of the gradient.

    Args:
        problem: what to solve.
        watch: called with every round of accepted steps, and with what was taken from them.

    Raises:
        SolveError: the solve of a sample broke down, and `on_failure="raise"`.
    """
    walk = AdaptiveWalk(problem, watch) if problem.scheme.adaptive else FixedWalk(problem, watch)
    with problem.field.consistency.forward():
        walk.begin()
        while len(walk.samples):
            walk.round()
    return walk.solution()

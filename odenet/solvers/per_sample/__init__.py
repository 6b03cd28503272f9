"""Solves in which every sample of a batch has its own steps."""

from odenet.solvers.per_sample.loop import integrate_samples
from odenet.solvers.per_sample.problem import SampleProblem
from odenet.solvers.per_sample.solution import SampleSolution

__all__ = ["SampleProblem", "SampleSolution", "integrate_samples"]

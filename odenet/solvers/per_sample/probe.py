"""Does F treat its samples one by one? Found out where a wrong F would go unnoticed."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from odenet.errors import InputError
from odenet.solvers.per_sample.problem import SampleProblem

_passed: WeakKeyDictionary[Any, set[torch.Size]] = WeakKeyDictionary()


@torch.no_grad()
def check_samples(problem: SampleProblem, samples: Tensor, t: Tensor, x: Tensor, k: Tensor | None = None) -> None:
    """Raise if F takes a number of each sample for a number of each feature.

    A (rows,) tensor broadcasts against the last dimension of the state. If that has another size F fails by itself;
    if it has as many elements as there are samples F gives wrong values instead, and fails as soon as a sample is left
    out. So that is tried, once for an F and a shape, by an evaluation that is not counted.

    Args:
        problem: what is solved.
        samples: whose rows these are, on the host.
        t: times, (rows,).
        x: states, (rows, ...).
        k: F(t, x), if it is known.

    Raises:
        InputError: F fails without the last sample, or gives the others other values.
    """
    rows = len(x)
    if rows < 2 or rows not in x.shape[1:] or problem.weights.pieces != 1:
        return
    weights, field = problem.weights, problem.field
    F = weights.piece(0, float(problem.t0[0]), float(problem.t1[0]))  # one interval for all, if they vary over it
    try:
        passed = _passed.setdefault(weights if weights.varies else F, set())
    except TypeError:
        passed = set()
    if x.shape in passed:
        return
    x = x.detach()  # an F that differentiates inside asks whether x requires a gradient
    args = field.rows_of(samples[:-1].to(x.device))
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        if k is None:
            k = F(t.to(field.time_dtype), x, *field.rows_of(samples.to(x.device)))
        try:
            part = F(t[:-1].to(field.time_dtype), x[:-1], *args)
            same = part.shape == x[:-1].shape and torch.allclose(part, k[:-1], rtol=1e-3, atol=1e-5, equal_nan=True)
        except Exception as error:
            raise InputError(f"{_SENTENCE.format(rows=rows)}; without one of the samples it fails: {error}") from error
    if not same:
        raise InputError(f"{_SENTENCE.format(rows=rows)}; without one of the samples it gives the others other values")
    passed.add(x.shape)


_SENTENCE = (
    "with per_sample=True F must treat samples one by one, but seems to take a tensor of shape ({rows},), one number "
    "for each sample, for one number for each of {rows} features (shape it like t.reshape(-1, *[1] * (x.dim() - 1))), "
    "or to hold a tensor of the samples (hand it over in args= and name it in per_sample_args)"
)

"""Exponents of a power law between a number of layers and a distance, and how well several seeds know it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise


def slope(distances: Mapping[int, float]) -> float:
    """Least-squares slope of the logarithms."""
    x, y = [math.log(n) for n in distances], [math.log(max(d, 1e-300)) for d in distances.values()]
    return statistics.linear_regression(x, y).slope if len(x) > 1 else math.nan


def limit(distances: Mapping[int, float]) -> float:
    """The slope for N → ∞ from the last two slopes, whose error falls as 1/N; of two N their slope."""
    N = sorted(distances)[-3:]
    if len(N) < 3:
        return slope(distances)
    before, last = (slope({n: distances[n] for n in pair}) for pair in pairwise(N))
    return last + (last - before) / (N[-1] / N[-2] - 1)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of Student's 95 % interval, which is zero for one value."""
    if len(values) < 2:
        return statistics.fmean(values), 0.0
    from scipy.stats import t

    quantile = float(t.ppf(0.975, len(values) - 1))
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))

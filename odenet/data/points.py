"""Points with a known geometry: moons, spirals and nested spheres, and the line that is to be flipped.

Coordinates are left as they are made (not standardised), since the geometry is the point of these sets.
Training and test points are independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from odenet.data.dataset import DataSet, check_count, check_range, check_seed, datasets
from odenet.errors import InputError

Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@datasets.register("moons")
def moons(n: int = 1000, n_test: int = 1000, noise: float = 0.1, seed: int = 0) -> DataSet:
    """Two interleaved half circles in the plane.

    The upper moon is (cos a, sin a), the lower (1 - cos a, 1/2 - sin a), with a from 0 to pi.

    Args:
        n: number of training points.
        n_test: number of test points.
        noise: standard deviation of the Gaussian noise on each coordinate, at least 0.
        seed: seed of the draw.

    Returns:
        A data set of (2,) vectors with the classes upper and lower.

    Raises:
        InputError: a count or the noise is out of range.
    """
    check_range("noise", noise, 0)

    def draw(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import make_moons

        x, y = make_moons(count, noise=noise, random_state=int(generator.integers(2**32)))
        return np.asarray(x), np.asarray(y)

    return _drawn("moons", draw, ("upper", "lower"), n, n_test, seed)


@datasets.register("spirals")
def spirals(
    arms: int = 2, n: int = 1000, n_test: int = 1000, turns: float = 1.0, noise: float = 0.02, seed: int = 0
) -> DataSet:
    """Archimedean spirals in the unit disc, one class for each arm.

    Arm k of K is r (cos a, sin a) with a = 2 pi (turns r + k / K) and r uniform in [0.1, 1].

    Args:
        arms: number of spirals K, at least 2.
        n: number of training points, at least one for each arm.
        n_test: number of test points, at least one for each arm.
        turns: full turns that an arm makes while its radius grows by 1, positive.
        noise: standard deviation of the Gaussian noise on each coordinate, at least 0.
        seed: seed of the draw.

    Returns:
        A data set of (2,) vectors.

    Raises:
        InputError: a number is out of range.
    """
    check_count("arms", arms)
    if arms < 2:
        raise InputError(f"arms must be at least 2, got {arms}; one arm is one class")
    check_range("turns", turns, 0, open_low=True)
    check_range("noise", noise, 0)

    def draw(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        arm = np.arange(count) % arms
        r = generator.uniform(0.1, 1.0, count)
        a = 2 * math.pi * (turns * r + arm / arms)
        x = np.stack([r * np.cos(a), r * np.sin(a)], axis=1)
        return x + noise * generator.standard_normal(x.shape), arm

    return _drawn("spirals", draw, tuple(f"arm {k}" for k in range(arms)), n, n_test, seed)


@datasets.register("nested_spheres")
def nested_spheres(
    dim: int = 2,
    n: int = 1000,
    n_test: int = 1000,
    r1: float = 0.5,
    r2: float = 1.0,
    r3: float = 1.5,
    seed: int = 0,
) -> DataSet:
    """A ball |x| < r1 inside a shell r2 < |x| < r3, both filled uniformly.

    The flow of an ODE on R^dim keeps the ball inside the shell, so it cannot separate the two linearly; one
    additional dimension is enough.

    Args:
        dim: dimension of the space, at least 1.
        n: number of training points, half of them in the ball.
        n_test: number of test points, half of them in the ball.
        r1: radius of the ball.
        r2: inner radius of the shell.
        r3: outer radius of the shell; 0 < r1 < r2 < r3.
        seed: seed of the draw.

    Returns:
        A data set of (dim,) vectors with the classes inner and outer.

    Raises:
        InputError: a count is not positive or the radii do not increase.

    Reference:
        E. Dupont, A. Doucet, Y. W. Teh, Augmented Neural ODEs, NeurIPS 2019, section 4.
    """
    check_count("dim", dim)
    check_range("r1", r1, 0, open_low=True)
    check_range("r3", r3, 0, open_low=True)
    if not r1 < r2 < r3:
        raise InputError(f"the radii must increase, 0 < r1 < r2 < r3, got r1={r1}, r2={r2}, r3={r3}")

    def draw(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        outer = np.arange(count) % 2
        low, high = np.where(outer, r2, 0.0), np.where(outer, r3, r1)
        # a fraction u of the volume between two radii lies below radius (low^d + u (high^d - low^d))^(1/d);
        # in units of the outer radius, so that a power of a large dimension cannot overflow
        u, ratio = generator.random(count), (low / high) ** dim
        radius = high * (ratio + u * (1 - ratio)) ** (1 / dim)
        direction = generator.standard_normal((count, dim))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        return radius[:, None] * direction, outer

    return _drawn("nested_spheres", draw, ("inner", "outer"), n, n_test, seed)


@datasets.register("flip")
def flip(n: int = 500, n_test: int = 500, tolerance: float = 0.1, seed: int = 0) -> DataSet:
    """The line turned round, x -> -x for x uniform in [-1, 1]: a regression that no flow on the line can learn.

    Two solutions of an ODE in one dimension keep their order, so its flow is an increasing function of x. Of all those
    the constant 0 has the smallest squared error, 1/3.

    Args:
        n: number of training points.
        n_test: number of test points.
        tolerance: distance up to which a prediction counts as right.
        seed: seed of the draw.

    Returns:
        A data set of (1,) vectors with targets of shape (1,).

    Raises:
        InputError: a number is out of range.

    Reference:
        E. Dupont, A. Doucet, Y. W. Teh, Augmented Neural ODEs, NeurIPS 2019, section 3.
    """
    check_range("tolerance", tolerance, 0, open_low=True)
    check_count("n", n)
    check_count("n_test", n_test)
    check_seed("seed", seed)
    train, test = (
        torch.from_numpy(np.random.default_rng((seed, part)).uniform(-1, 1, (count, 1))).float()
        for part, count in enumerate((n, n_test))
    )
    return DataSet("flip", train, -train, test, -test, (), tolerance=tolerance)


def _drawn(name: str, draw: Draw, classes: tuple[str, ...], n: int, n_test: int, seed: int) -> DataSet:
    check_count("n", n)
    check_count("n_test", n_test)
    check_seed("seed", seed)
    for part, count in (("n", n), ("n_test", n_test)):
        if count < len(classes):
            raise InputError(f"{part} must be at least {len(classes)}, one for each class, got {count}")
    train_x, train_y = draw(n, np.random.default_rng((seed, 0)))
    test_x, test_y = draw(n_test, np.random.default_rng((seed, 1)))
    return DataSet(
        name=name,
        train_x=torch.from_numpy(train_x).float(),
        train_y=torch.from_numpy(train_y).long(),
        test_x=torch.from_numpy(test_x).float(),
        test_y=torch.from_numpy(test_y).long(),
        classes=classes,
    )

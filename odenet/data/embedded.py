"""Data sets that need no download: handwritten digits (scikit-learn) and MNIST-1D (generated)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from odenet.data.dataset import DataSet, check_count, check_range, check_seed, datasets
from odenet.errors import InputError

_DIGITS = tuple("0123456789")


@datasets.register("digits")
def digits(test_fraction: float = 0.2, split_seed: int = 0) -> DataSet:
    """Handwritten digits, 1797 grey images of 8 x 8 pixels, in a fixed stratified split.

    Standardised with the mean and standard deviation of all training pixels.

    Args:
        test_fraction: share of the samples that is held out, in (0, 1).
        split_seed: seed of the split; the runs that are compared keep it, whatever their own seed.

    Returns:
        A data set of (1, 8, 8) images.

    Raises:
        InputError: the fraction is not in (0, 1), or leaves a part with less than one sample per class.

    Reference:
        E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_range("test_fraction", test_fraction, 10 / 1797, 1 - 10 / 1797)
    check_seed("split_seed", split_seed)
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images.reshape(-1, 1, 8, 8), labels, test_size=test_fraction, stratify=labels, random_state=split_seed
    )
    return _standardised("digits", train_x, train_y, test_x, test_y)


@datasets.register("mnist1d")
def mnist1d(n: int = 4000, n_test: int = 1000, seed: int = 42) -> DataSet:
    """MNIST-1D: ten digit-like curves of 40 points, scaled, shifted, sheared and noisy.

    The `mnist1d` package generates the samples; nothing is downloaded. The default arguments are those of the
    published data set. Standardised with the mean and standard deviation of all training values.

    Args:
        n: number of training samples.
        n_test: number of test samples; n + n_test is a multiple of ten.
        seed: seed of the generator.

    Returns:
        A data set of (40,) vectors.

    Raises:
        InputError: a count is not positive, or the total is not a multiple of ten.

    Reference:
        S. Greydanus, D. Kobak, Scaling Down Deep Learning with MNIST-1D, ICML 2024.
    """
    from mnist1d.data import get_dataset_args, make_dataset

    check_count("n", n)
    check_count("n_test", n_test)
    check_seed("seed", seed)
    total = n + n_test
    if total % 10:
        raise InputError(
            f"n + n_test must be a multiple of 10 (one share for each class), got {n} + {n_test} = {total}; "
            f"the nearest n_test that works is {n_test + 10 - total % 10}"
        )
    settings: Any = get_dataset_args()
    settings.num_samples, settings.seed = total, seed
    settings.train_split = (n + 0.5) / total  # the package truncates total * train_split
    before = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(settings)  # it seeds Python's and numpy's global generators
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    return _standardised("mnist1d", made["x"], made["y"], made["x_test"], made["y_test"])


def _standardised(name: str, train_x: Any, train_y: Any, test_x: Any, test_y: Any) -> DataSet:
    mean, std = train_x.mean(), train_x.std()
    return DataSet(
        name=name,
        train_x=torch.from_numpy((train_x - mean) / std).float(),
        train_y=torch.from_numpy(train_y).long(),
        test_x=torch.from_numpy((test_x - mean) / std).float(),
        test_y=torch.from_numpy(test_y).long(),
        classes=_DIGITS,
    )

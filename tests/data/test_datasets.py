"""What holds for every data set that needs no files, and the facts of each."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import odenet.data
from odenet.data import DataSet, datasets, digits, flip, list_datasets, mnist1d, moons, nested_spheres, spirals
from odenet.errors import InputError, UnknownNameError

FROM_FILES = {"mnist", "fashion_mnist", "cifar10"}


@pytest.fixture(scope="module", params=[name for name in list_datasets() if name not in FROM_FILES])
def data(request) -> DataSet:
    return datasets[request.param]()


def test_parts_fit_together(data):
    assert data.train_x.dtype == torch.float32
    assert data.train_x.shape == (len(data.train_y), *data.shape)
    assert data.test_x.shape == (len(data.test_y), *data.shape)
    assert torch.isfinite(data.train_x).all()
    assert data.kind == ("image" if data.train_x.dim() == 4 else "vector")
    assert data.name in data.description
    assert data.prepare(data.train_x[:3]) is not None


def test_classes_are_balanced_in_both_parts(data):
    if data.tolerance is not None:
        assert data.classes == () and data.outputs == data.train_y.shape[1]
        return
    for y in (data.train_y, data.test_y):
        counts = torch.bincount(y, minlength=len(data.classes)).float()
        assert len(counts) == len(data.classes)
        assert counts.min() > 0.75 * counts.mean()


def test_the_same_call_gives_the_same_numbers(data):
    again = datasets[data.name]()
    assert torch.equal(again.train_x, data.train_x)
    assert torch.equal(again.test_x, data.test_x)
    assert torch.equal(again.train_y, data.train_y)


def test_training_and_test_samples_are_different(data):
    distances = torch.cdist(data.test_x.flatten(1).double(), data.train_x.flatten(1).double())
    assert distances.min() > 0


def test_every_data_set_is_a_public_function():
    for name, entry in datasets.items():
        assert getattr(odenet.data, name) is entry


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown data set 'digit'; did you mean 'digits'\?"):
        datasets["digit"]


def test_importing_the_package_imports_no_heavy_library():
    heavy = {"sklearn", "torchvision", "mnist1d", "matplotlib"}
    code = f"import sys, odenet.data; print(*{heavy} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == ""


@pytest.mark.parametrize("make", [digits, lambda: mnist1d(n=200, n_test=50)])
def test_standardised_with_the_training_statistics(make):
    data = make()
    assert abs(data.train_x.double().mean()) < 1e-6
    assert_close(data.train_x.double().std(correction=0).item(), 1.0, atol=1e-5, rtol=0)
    assert abs(data.test_x.mean()) > 1e-6


def test_digits_is_a_partition_of_scikit_learns_set():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = digits(test_fraction=0.25, split_seed=3)
    assert data.shape == (1, 8, 8)
    assert len(data.test_x) == 450  # scikit-learn rounds up
    together = torch.cat([data.train_x, data.test_x]).flatten(1).double()
    restored = together * ((together.max() - together.min()) ** -1 * 16)
    restored = (restored - restored.min()).round().int().numpy()
    key = lambda rows, y: sorted((*row, label) for row, label in zip(rows.tolist(), y.tolist(), strict=True))  # noqa: E731
    assert key(restored, torch.cat([data.train_y, data.test_y])) == key(pixels.astype(int), labels)


def test_another_split_seed_is_another_split():
    assert not torch.equal(digits(split_seed=0).test_x, digits(split_seed=1).test_x)


def test_mnist1d_touches_neither_network_nor_global_generators(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    import requests

    monkeypatch.setattr(requests, "get", lambda *a, **k: pytest.fail("network"))
    random.seed(5), np.random.seed(5)
    data = mnist1d(n=30, n_test=10, seed=1)
    drawn = random.random(), np.random.rand()
    random.seed(5), np.random.seed(5)
    assert drawn == (random.random(), np.random.rand())
    assert data.shape == (40,)
    assert (len(data.train_x), len(data.test_x)) == (30, 10)
    assert list(tmp_path.iterdir()) == []


def test_flip_is_the_line_turned_round():
    data = flip(n=300, n_test=100, tolerance=0.2, seed=3)
    assert data.train_x.shape == data.train_y.shape == (300, 1) and data.test_x.shape == (100, 1)
    assert torch.equal(data.train_y, -data.train_x) and torch.equal(data.test_y, -data.test_x)
    assert data.train_x.min() < -0.95 and data.train_x.max() > 0.95 and data.train_x.abs().max() <= 1
    assert (data.outputs, data.tolerance) == (1, 0.2) and "1 numbers" in data.description
    with pytest.raises(InputError, match="must be float32 of shape"):
        DataSet("wrong", data.train_x, data.train_y.double(), data.test_x, data.test_y, (), tolerance=0.1)
    with pytest.raises(InputError, match="tolerance must be greater than 0"):
        flip(tolerance=0.0)


def test_moons_without_noise_lie_on_the_half_circles():
    data = moons(n=200, n_test=50, noise=0.0)
    x, y = data.train_x.double(), data.train_y
    upper, lower = x[y == 0], x[y == 1]
    assert_close(upper.norm(dim=1), torch.ones(100, dtype=torch.float64), atol=1e-6, rtol=0)
    assert upper[:, 1].min() > -1e-6
    centre = torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert_close((lower - centre).norm(dim=1), torch.ones(100, dtype=torch.float64), atol=1e-6, rtol=0)
    assert lower[:, 1].max() < 0.5 + 1e-6


@pytest.mark.parametrize(("arms", "turns"), [(2, 1.0), (3, 0.5), (5, 2.0)])
def test_spirals_without_noise_lie_on_their_arms(arms, turns):
    data = spirals(arms=arms, turns=turns, noise=0.0, n=40 * arms)
    x = data.train_x.double()
    r = x.norm(dim=1)
    assert 0.1 - 1e-6 < r.min() < r.max() < 1 + 1e-6
    angle = torch.atan2(x[:, 1], x[:, 0]) - 2 * torch.pi * turns * r
    arm = (angle * arms / (2 * torch.pi)).round() % arms
    assert torch.equal(arm.long(), data.train_y)


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 2000])
def test_nested_spheres_fill_ball_and_shell_uniformly(dim):
    data = nested_spheres(dim=dim, n=4000, r1=0.4, r2=0.9, r3=1.6, seed=1)
    assert data.shape == (dim,)
    r = data.train_x.double().norm(dim=1)
    inner, outer = r[data.train_y == 0], r[data.train_y == 1]
    assert inner.max() < 0.4 + 1e-5
    assert outer.min() > 0.9 - 1e-5
    assert outer.max() < 1.6 + 1e-5
    # the volume below a radius, as a share of the whole, is uniform in [0, 1] (Kolmogorov-Smirnov)
    from scipy.stats import kstest

    assert kstest((inner / 0.4).clamp(max=1) ** dim, "uniform").pvalue > 1e-3
    low = (0.9 / 1.6) ** dim
    assert kstest(((outer / 1.6) ** dim - low) / (1 - low), "uniform").pvalue > 1e-3
    # no direction is preferred: the mean is within five standard errors of the origin
    assert data.train_x.mean(0).abs().max() < 5 * 1.6 / (4000**0.5)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (digits, {"test_fraction": 0.0}, "test_fraction must be at least"),
        (digits, {"test_fraction": 1.0}, "test_fraction must be at least .* got 1.0"),
        (digits, {"split_seed": -1}, "split_seed must be an integer from 0"),
        (mnist1d, {"n": 0}, "n must be a positive integer, got 0"),
        (mnist1d, {"n": 33, "n_test": 5}, "multiple of 10 .* the nearest n_test that works is 7"),
        (moons, {"n": 0}, "n must be a positive integer, got 0"),
        (moons, {"noise": -0.1}, "noise must be at least 0 and finite, got -0.1"),
        (moons, {"noise": float("nan")}, "noise must be at least 0 and finite, got nan"),
        (moons, {"seed": 0.5}, "seed must be an integer"),
        (spirals, {"arms": 1}, "arms must be at least 2, got 1"),
        (spirals, {"turns": 0}, "turns must be greater than 0 and finite, got 0"),
        (spirals, {"arms": 5, "n_test": 4}, "n_test must be at least 5, one for each class, got 4"),
        (nested_spheres, {"dim": 0}, "dim must be a positive integer, got 0"),
        (nested_spheres, {"r1": 1.0}, "the radii must increase"),
        (nested_spheres, {"r1": 0.0}, "r1 must be greater than 0"),
        (nested_spheres, {"r3": 0.7}, "the radii must increase"),
    ],
)
def test_bad_arguments_are_named(make, arguments, message):
    with pytest.raises(InputError, match=message):
        make(**arguments)


def test_a_data_set_whose_parts_do_not_fit_is_refused():
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match="one label for each"):
        DataSet("mine", x, y[:3], x, y, ("a",))
    with pytest.raises(InputError, match=r"labels of mine must be int64 in 0\.\.0"):
        DataSet("mine", x, y + 1, x, y, ("a",))
    with pytest.raises(InputError, match="must agree"):
        DataSet("mine", x, y, x[:, :1], y, ("a",))
    with pytest.raises(InputError, match="uint8 with mean and std"):
        DataSet("mine", x.byte(), y, x.byte(), y, ("a",))

"""The schedules against their formulas."""

import math
import warnings
from functools import partial

import pytest
import torch

from odenet.errors import InputError
from odenet.training import constant, cosine, multistep, one_cycle

STEPS = 40


def rates(schedule, lr=0.1, steps=STEPS):
    """Learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = schedule(optimizer, steps)
        seen = []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert optimizer.param_groups[0]["momentum"] == 0.9
    return seen


def test_constant():
    assert rates(constant) == [0.1] * STEPS


def test_cosine():
    expected = [0.01 + 0.09 * (1 + math.cos(math.pi * i / STEPS)) / 2 for i in range(STEPS)]
    assert rates(partial(cosine, min_lr=0.01)) == pytest.approx(expected)


def test_cosine_after_a_warm_up():
    rising = [0.1 * (1 / 11 + (1 - 1 / 11) * i / 10) for i in range(10)]
    falling = [0.1 * (1 + math.cos(math.pi * i / 30)) / 2 for i in range(30)]
    assert rates(partial(cosine, warmup=0.25)) == pytest.approx(rising + falling)


def test_multistep():
    assert rates(multistep) == pytest.approx([0.1] * 20 + [0.01] * 10 + [0.001] * 10)


def test_one_cycle():
    up = 0.3 * STEPS - 1
    seen = rates(one_cycle)
    assert seen[0] == pytest.approx(0.1 / 25)
    assert max(seen) == seen[int(up)] == pytest.approx(0.1)
    assert seen[-1] == pytest.approx(0.1 / 25 / 1e4)
    for i in range(int(up)):
        assert seen[i] == pytest.approx(0.1 + (0.1 / 25 - 0.1) * (1 + math.cos(math.pi * i / up)) / 2)
    assert max(rates(partial(one_cycle, max_lr=0.5))) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", [constant, cosine, partial(cosine, warmup=0.5), multistep, one_cycle])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs(schedule, steps):
    assert all(0 < lr <= 0.1 + 1e-12 for lr in rates(schedule, steps=steps))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (partial(cosine, warmup=1.0), r"warmup is a share of the steps in \[0, 1\), got 1.0"),
        (partial(one_cycle, pct_start=2), r"pct_start must be in \[0, 1\], got 2"),
        (partial(multistep, milestones=(0.7, 0.3)), "milestones must be increasing shares"),
        (partial(multistep, milestones=(30, 60)), "milestones must be increasing shares"),
        (partial(multistep, gamma=0), "gamma must be positive, got 0"),
    ],
)
def test_bad_arguments(schedule, message):
    with pytest.raises(InputError, match=message):
        rates(schedule)

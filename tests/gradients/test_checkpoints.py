"""A bounded number of kept states: the fewest steps redone, the same gradient, the memory that was promised."""

from functools import cache

import pytest
import torch

import odenet
from odenet.gradients.binomial import first_chain, split
from odenet.training import SavedTensorMeter


@cache
def fewest(steps, states):
    """Steps redone at least to reverse a chain from so many kept states, its first one among them."""
    if steps == 1:
        return 0
    if states == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, states - 1) + fewest(m, states) for m in range(1, steps))


def redone(steps, slots):
    if steps == 1:
        return 0
    if slots == 0:
        return steps * (steps - 1) // 2
    m = split(steps, slots)
    assert 1 <= m < steps
    return m + redone(steps - m, slots - 1) + redone(m, slots)


@pytest.mark.parametrize("slots", range(1, 9))
def test_the_splits_redo_as_few_steps_as_any_schedule_can(slots):
    for steps in range(2, 70):
        assert redone(steps, slots) == fewest(steps, slots + 1), steps


@pytest.mark.parametrize("gradient", ["checkpoint", "stagewise"])
@pytest.mark.parametrize("checkpoints", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("solver", "steps"), [("euler", 40), ("rk4", 12), ("ab4", 12), ("dopri5", None)])
def test_fewer_states_give_the_same_floats(solver, steps, checkpoints, gradient, x):
    if solver not in odenet.gradients.gradients[gradient].solvers():
        pytest.skip("not defined for this solver")
    F = odenet.residual.MLP(3, width=6, time="concat").double()
    scheme = {"steps": steps} if steps else {"rtol": 1e-9, "atol": 1e-9}
    weights = odenet.depth.piecewise_constant(2)(F)

    def differentiate(**options):
        x0 = x.clone().requires_grad_()
        solution = odenet.solve(
            weights,
            x0,
            (0, 2),
            solver=solver,
            gradient=gradient,
            gradient_options=options,
            ts=[0.3, 1.0, 2.0],
            **scheme,
        )
        return torch.autograd.grad(solution.ys.square().sum(), [x0, *weights.parameters()]), solution.stats

    (all_kept, stats), (few, few_stats) = differentiate(), differentiate(checkpoints=checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(few, all_kept, strict=True))
    assert few_stats.accepted == stats.accepted > 10
    assert (few_stats.nfe_backward > stats.nfe_backward) == (checkpoints < stats.accepted - 1)
    assert few_stats.vjps == stats.vjps


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("steps", [2, 10, 57])
def test_steps_are_redone_as_often_as_the_schedule_says(steps, slots, x):
    F = odenet.residual.MLP(3, width=6).double()
    solution = odenet.solve(
        F, x, solver="euler", steps=steps, gradient="checkpoint", gradient_options={"checkpoints": slots}
    )
    solution.last.sum().backward()
    in_the_forward_pass = max(first_chain(steps, slots))
    expected = steps + redone(steps, slots) - in_the_forward_pass
    assert solution.stats.nfe_backward == solution.stats.steps_backward == expected


@pytest.mark.parametrize("scheme", [{"solver": "euler", "steps": 400}, {"rtol": 1e-12, "atol": 1e-12}], ids=str)
@pytest.mark.parametrize("checkpoints", [1, 4, 9])
def test_no_more_states_are_kept_than_were_allowed(checkpoints, scheme):
    F = odenet.residual.MLP(4, width=2, layers=1).double()
    x0 = torch.randn(4096, 4, dtype=torch.float64, requires_grad=True)
    with SavedTensorMeter(exclude=[x0, *F.parameters()]) as meter:
        solution = odenet.solve(F, x0, gradient="checkpoint", gradient_options={"checkpoints": checkpoints}, **scheme)
        assert solution.stats.accepted > 30
        state = x0.numel() * 8
        assert checkpoints * state / 2 <= meter.live <= checkpoints * state

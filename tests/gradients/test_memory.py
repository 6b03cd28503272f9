"""Bytes held for the backward pass, measured, over 10, 100 and 1,000 steps (slow): what a method says of its memory."""

import gc

import pytest
import torch

import odenet
from odenet.gradients import gradients
from odenet.solvers.control import Controller
from odenet.training import SavedTensorMeter

BATCH, DIM, WIDTH = 256, 4, 64
STATE = BATCH * DIM * 8
GREEDY = Controller(safety=1.0, grow=10.0)  # every other step is too long
CONSTANT = {"mali": 2, "reversible_heun": 3, "reversible": 2, "momentum": 2, "adjoint": 2}
GROWING = {"checkpoint": 1, "stagewise": 1}
SOLVERS = {"mali": "alf", "reversible_heun": "reversible_heun", "momentum": "euler", "reversible": "midpoint"}


def held(gradient, steps, per_sample=False, **options):
    """Bytes held when the forward pass is over, and the peak until the end of the backward pass, in states."""
    F = odenet.residual.MLP(DIM, width=WIDTH, layers=1, norm="none").double()
    x0 = torch.randn(BATCH, DIM, dtype=torch.float64, requires_grad=True)
    with SavedTensorMeter(exclude=[x0, *F.parameters()]) as meter:
        last = odenet.solve(
            F, x0, solver=SOLVERS.get(gradient, "rk4"), steps=steps, gradient=gradient, gradient_options=options,
            per_sample=per_sample,
        ).last  # fmt: skip
        after_forward = meter.live
        last.square().sum().backward()
    assert meter.live == 0
    return after_forward / STATE, meter.peak / STATE


@pytest.mark.parametrize("most", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gradient", [g for g in CONSTANT if g in gradients])
def test_memory_that_does_not_grow_with_the_number_of_steps(gradient, most):
    measured = [held(gradient, steps) for steps in (10, most)]
    assert measured[0] == measured[1]
    forward, peak = measured[0]
    assert forward <= CONSTANT[gradient] + 0.01
    one_evaluation = WIDTH / DIM + 2  # the hidden layer, and the state that went in
    assert peak <= forward + 1 + one_evaluation + 1  # the loss saves its input


def walked(gradient, steps, **options):
    """As `held`, each sample on an interval of its own with steps of 1/`steps`; also the bytes of the record a step."""
    F = odenet.residual.MLP(DIM, width=WIDTH, layers=1, norm="none").double()
    x0 = torch.randn(BATCH, DIM, dtype=torch.float64, requires_grad=True)
    with SavedTensorMeter(exclude=[x0, *F.parameters()]) as meter:
        solution = odenet.solve(
            F, x0, (0.0, torch.linspace(0.3, 1.0, BATCH)), solver=SOLVERS.get(gradient, "rk4"), step_size=1 / steps,
            gradient=gradient, gradient_options=options, per_sample=True,
        )  # fmt: skip
        last, after_forward = solution.last, meter.live
        record = solution.values.grad_fn.record
        numbers = [t for r in record.rounds for t in (r.samples, r.segments, *r.times)]
        numbers = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in numbers}
        last.square().sum().backward()
    assert meter.live == 0
    each = solution.stats.samples.accepted
    assert int(each.max()) == steps and int(each.min()) <= 0.4 * steps
    return after_forward / STATE, meter.peak / STATE, sum(numbers.values()) / int(each.sum())


@pytest.mark.parametrize("most", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gradient", [g for g in CONSTANT if g in gradients and g != "adjoint"])
def test_memory_where_every_sample_has_its_own_steps(gradient, most):
    """Rows leave the batch on the way, and what is undone is at different times in different rows."""
    measured = [walked(gradient, steps)[:2] for steps in (10, most)]
    assert measured[0] == measured[1]
    forward, peak = measured[0]
    index = 1 / DIM  # an index of the rows, for `last`
    assert forward <= CONSTANT[gradient] + index + 0.01
    assert peak <= forward + 1 + WIDTH / DIM + 2 + 1
    assert walked(gradient, 100)[2] < 50  # bytes a step: its times, its size, and whose it is
    assert held(gradient, 10, per_sample=True)[0] <= CONSTANT[gradient] + index + 0.01


@pytest.mark.parametrize("gradient", [g for g in GROWING if g in gradients])
def test_memory_of_the_rows_that_made_a_step_or_of_a_few_states_of_the_batch(gradient):
    assert 60 < walked(gradient, 100)[0] < 66
    assert walked(gradient, 100, checkpoints=5)[0] < 5.3


@pytest.mark.parametrize("most", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gradient", [g for g in GROWING if g in gradients])
def test_memory_of_one_state_a_step(gradient, most):
    for steps in (10, most):
        forward, _ = held(gradient, steps)
        assert forward == steps - 1
        few, few_peak = held(gradient, steps, checkpoints=5)
        assert few == min(5, steps - 1) and few_peak < few + 100


def test_rejected_trials_leave_no_graph_behind():
    """Backprop holds what it holds for the accepted steps alone, given as a grid."""
    F = odenet.residual.MLP(DIM, width=WIDTH, layers=1, norm="none").double()
    x0 = torch.randn(8, DIM, dtype=torch.float64, requires_grad=True)

    def live(**scheme):
        with SavedTensorMeter(exclude=[x0, *F.parameters()]) as meter:
            solution = odenet.solve(lambda t, x: 8 * F(t, x) * torch.cos(9 * t), x0, gradient="autograd", **scheme)
            return meter.live, solution.stats

    kept, stats = live(solver="dopri5", rtol=1e-6, atol=1e-6, first_step=1.0, controller=GREEDY)
    assert stats.rejected > stats.accepted / 2
    ends = torch.tensor([0.0, *stats.h], dtype=torch.float64).cumsum(0)
    ends[-1] = 1.0
    alone, given = live(solver="dopri5", grid=ends.tolist())
    assert given.accepted == stats.accepted
    assert kept < 1.1 * alone


BESIDE = {"dopri5": 0, "alf": 1, "reversible_heun": 2, "leapfrog": 1, "ab5": 1, "implicit_euler": 1}
BESIDE |= {"gl4": 2, "radau5": 3}


@pytest.mark.parametrize("solver", list(BESIDE))
def test_what_a_solver_remembers_is_kept_with_the_state(solver):
    """A step of an implicit method begins with the stages of the one before, and is to be redone as it was."""
    kept = []
    for steps in (4, 8):
        F = odenet.residual.MLP(DIM, width=4, layers=1, norm="none").double()
        x0 = torch.randn(8, DIM, dtype=torch.float64, requires_grad=True)
        with SavedTensorMeter(exclude=[x0, *F.parameters()]) as meter:
            solution = odenet.solve(F, x0, solver=solver, steps=steps, gradient="checkpoint")
            kept.append(meter.live)
        assert solution.stats.accepted == steps
    assert kept[1] - kept[0] == 4 * (1 + BESIDE[solver]) * 8 * DIM * 8


def test_memory_of_backprop_and_of_one_step_and_of_one_evaluation():
    all_steps = [held("autograd", steps)[1] for steps in (10, 100)]
    assert all_steps[1] > 9 * all_steps[0] > 9 * 10 * 4 * WIDTH / DIM
    one_step = held("checkpoint", 10)[1] - 10
    one_evaluation = held("stagewise", 10)[1] - 10
    assert one_step > 4 * WIDTH / DIM and one_evaluation < 2 * WIDTH / DIM


@pytest.mark.parametrize(
    "gradient", [g for g, method in gradients.items() if g != "autograd" and "native" in method.backends]
)
@pytest.mark.parametrize("finished", [True, False], ids=["after backward", "without backward"])
def test_nothing_is_left_to_the_garbage_collector(gradient, finished, x):
    """A solve that is let go frees its tensors at once: no reference cycles."""
    F = odenet.residual.MLP(3, width=4, layers=1).double()
    solver = SOLVERS.get(gradient, "rk4")
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        solution = odenet.solve(F, x.clone().requires_grad_(), solver=solver, steps=6, gradient=gradient, ts=[0.5, 1])
        if finished:
            torch.autograd.grad(solution.ys.sum(), list(F.parameters()))
        del solution
        assert tensors() == before
    finally:
        gc.enable()


def tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

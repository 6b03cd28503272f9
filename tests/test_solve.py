"""`odenet.solve` on bad input and on problems that break down: one clear sentence each."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import odenet
from odenet import errors
from odenet.solvers import backends
from tests.oracles import gradients_for

X = torch.ones(2, 3)


def decay(t, x):
    return -x


def net():
    return odenet.residual.MLP(3)


REFUSED = [
    ({"solver": "dopri6"}, r"unknown solver 'dopri6'; did you mean 'dopri[58]'\? valid: .*euler.*native"),
    ({"solver": "ruler", "steps": 2}, "did you mean 'euler'"),
    ({"solver": "Radau"}, "unknown solver 'Radau'.*backend='scipy' has it"),
    ({"solver": None}, "unknown solver None"),
    ({"solver": ["euler"]}, "unknown solver"),
    ({"solver": "dopri", "backend": "torchdiffeq"}, r"dopri8.*\(backend 'torchdiffeq'\)"),
    ({"gradient": "checkpiont"}, "unknown gradient 'checkpiont'; did you mean 'checkpoint'?"),
    ({"gradient": 3}, "unknown gradient 3"),
    ({"backend": "jax"}, "unknown backend 'jax'; valid: native, scipy, torchdiffeq"),
    ({"weights": "tide"}, "unknown depth weights 'tide'; did you mean 'tied'?"),
    ({"steps": 0}, "steps must be a positive integer, got 0; for an adaptive solver leave steps out"),
    ({"steps": -1}, "steps must be a positive integer, got -1"),
    ({"steps": 1.5}, "got 1.5"),
    ({"steps": True}, "got True"),
    ({"steps": "4"}, "got '4'"),
    ({"rtol": 0}, "rtol must be a positive number, got 0"),
    ({"atol": 0.0}, "atol must be a positive number, got 0.0"),
    ({"rtol": -1e-3}, "rtol must be a positive number, got -0.001"),
    ({"rtol": float("nan")}, "got nan"),
    ({"atol": torch.ones(2)}, r"atol must be a number or broadcast to the state's shape \(2, 3\), got \(2,\)"),
    ({"atol": float("inf")}, "got inf"),
    ({"rtol": "1e-3"}, "got '1e-3'"),
    ({"rtol": True}, "got True"),
    ({"rtol": 1e-8}, "rtol=1e-08 is below what torch.float32 resolves.*torch.float64"),
    ({"rtol": 1e-8, "gradient": "adjoint"}, "below what torch.float32 resolves"),
    ({"steps": 4, "rtol": 1e-3}, "rtol belongs to an adaptive solve, but steps=4.*leave out either rtol or steps"),
    ({"steps": 4, "atol": 1e-3}, "atol belongs to an adaptive solve"),
    ({"steps": 4, "first_step": 0.1}, "first_step belongs to an adaptive solve"),
    ({"solver": "rk4"}, "no error estimate.*give steps=N, or use an adaptive solver: .*dopri5"),
    ({"solver": "dopri8", "backend": "torchdiffeq", "steps": 3}, "picks its own steps; leave steps out.*rk4"),
    ({"solver": "euler", "backend": "torchdiffeq"}, "give steps=N"),
    ({"first_step": 0}, "first_step must be a positive number, got 0"),
    ({"max_steps": 0}, "max_steps must be a positive integer, got 0"),
    ({"max_nfe": 1.5}, "max_nfe must be a positive integer, got 1.5"),
    ({"solver": "euler", "steps": 20, "max_steps": 10}, "steps=20 is more than max_steps=10"),
    ({"options": {"safety": 0.8}}, "options are for other backends.*safety"),
    ({"options": ["safety"]}, "options must be a dict"),
    ({"options": {"safty": 0.8}, "backend": "torchdiffeq"}, "unknown option of solver 'dopri5' 'safty'.*'safety'"),
    ({"options": {"step_size": 0.1}, "backend": "torchdiffeq", "solver": "rk4", "steps": 2}, "unknown option.*interp"),
    ({"options": {"max_num_steps": 9}, "backend": "torchdiffeq"}, "unknown option"),
    ({"gradient_options": {"adjoint_rtol": 1e-3}}, "takes no gradient_options, got adjoint_rtol"),
    ({"gradient_options": {"x": 1}, "gradient": "checkpoint"}, "unknown option of gradient='checkpoint' 'x'"),
    ({"gradient_options": {"checkpoints": 0}, "gradient": "checkpoint"}, "checkpoints must be a positive integer"),
    ({"gradient_options": 3, "gradient": "adjoint"}, "gradient_options must be a dict"),
    (
        {"gradient_options": {"rtol": 1e-3}, "gradient": "adjoint"},
        "unknown option of gradient='adjoint' 'rtol'; valid:.*adjoint_rtol",
    ),
    ({"gradient_options": {"adjoint_rtol": -1}, "gradient": "adjoint"}, "adjoint_rtol must be a positive number"),
    ({"gradient_options": {"adjoint_solver": "rk5"}, "gradient": "adjoint"}, "unknown adjoint_solver 'rk5'"),
    ({"gradient_options": {"adjoint_solver": "rk4"}, "gradient": "adjoint"}, "'rk4' has no error estimate"),
    (
        {"gradient_options": {"adjoint_solver": "rk4"}, "gradient": "adjoint", "backend": "torchdiffeq"},
        "adjoint_solver='rk4' needs a grid",
    ),
    ({"gradient_options": {"norm": "half"}, "gradient": "adjoint"}, "norm must be 'seminorm', 'full' or a function"),
    ({"gradient_options": {"quadrature": 1}, "gradient": "adjoint"}, "quadrature must be True or False"),
    ({"gradient_options": {"quadrature": True, "norm": "full"}, "gradient": "adjoint"}, "leave one of them out"),
    (
        {"gradient_options": {"quadrature": True}, "gradient": "adjoint", "solver": "ab3", "steps": 4},
        "adds up the stages of an explicit Runge-Kutta method, which 'ab3' is not",
    ),
    (
        {"gradient_options": {"quadrature": True}, "gradient": "adjoint", "backend": "torchdiffeq"},
        "unknown option of gradient='adjoint' 'quadrature'",
    ),
    ({"gradient_options": {"adjoint_steps": 0}, "gradient": "adjoint"}, "steps must be a positive integer, got 0"),
    ({"gradient": "adjoint", "solver": "leapfrog", "steps": 4}, "walks pairs .*'adjoint_solver': 'rk4'"),
    ({"gradient": "checkpoint", "backend": "torchdiffeq"}, "with backend='torchdiffeq' use one of: adjoint, autograd"),
    ({"args": X}, r"args must be a tuple, got Tensor; a single argument is args=\(value,\)"),
    ({"t_span": (0, 1, 2)}, r"pair \(t0, t1\), got \(0, 1, 2\)"),
    ({"t_span": 1.0}, r"pair \(t0, t1\), got 1.0"),
    ({"t_span": (0, float("nan"))}, "t1 must be finite, got nan"),
    ({"t_span": (None, 1)}, "t0 must be a number, got None"),
    ({"t_span": (torch.zeros(2), 1)}, "t0 must be a number, got a tensor of shape"),
    ({"ts": []}, "ts must hold at least one time"),
    ({"ts": 0.5}, "ts must be a list or 1-d tensor"),
    ({"ts": [0.5, 0.2]}, "without turning back, got 0.2"),
    ({"ts": [0.5, 1.2]}, "got 1.2"),
    ({"ts": [-0.1]}, "got -0.1"),
    ({"ts": [0.1], "t_span": (1, 0.5)}, "got 0.1"),
    ({"ts": torch.zeros(2, 2)}, "ts must be a number"),
    ({"ts": [float("nan")]}, "ts must be finite"),
    ({"ts": ["soon"]}, "ts must be a number, got 'soon'"),
    ({"x0": torch.ones(2, dtype=torch.int64)}, r"floating-point or complex dtype, got torch.int64; use x.float\(\)"),
    ({"x0": torch.ones(2, dtype=torch.bool)}, "got torch.bool"),
    ({"x0": torch.ones(2, dtype=torch.bfloat16)}, "below what torch.bfloat16 resolves"),
    ({"x0": np.ones(3)}, "the state must be a tensor, got ndarray"),
    ({"F": 3}, "F must be a function or module called as F.t, x., got int"),
    ({"F": lambda x: x}, r"takes \(x\); wrap a block with forward\(x\) in odenet.residual.from_block"),
    ({"F": nn.Linear(3, 3)}, r"Linear takes \(input.*from_block"),
    ({"F": odenet.residual.MLP}, "got the class MLP; make an instance"),
    ({"F": odenet.depth.PiecewiseConstant([net(), net()]), "steps": 3}, "across a knot.*0.5.*multiple of 2 steps"),
    ({"dense": True, "backend": "torchdiffeq"}, "dense=True needs backend='native'"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[re.sub(r"0x\w+", "", str(g))[:60] for g, _ in REFUSED])
def test_what_cannot_be_used_is_refused_before_F_runs(given, said):
    calls = []

    def F(t, x):
        calls.append(t)
        return -x

    arguments = {"F": F, "x0": X, "t_span": (0.0, 1.0)} | given
    with pytest.raises(errors.InputError, match=said) as raised:
        odenet.solve(arguments.pop("F"), arguments.pop("x0"), arguments.pop("t_span"), **arguments)
    assert isinstance(raised.value, ValueError) and isinstance(raised.value, errors.OdenetError)
    assert not calls and "\n" not in str(raised.value)


RETURNS = [
    (lambda t, x: x[:, :2], r"keep the shape of x, \(2, 3\), but returned \(2, 2\)"),
    (lambda t, x: x.sum(), r"but returned \(\)"),
    (lambda t, x: x.double(), r"keep x's dtype torch.float32, but returned torch.float64; convert F"),
    (lambda t, x: x.bfloat16(), "torch.bfloat16.*autocast"),
    (lambda t, x: x.to("meta"), "stay on x's device cpu, but returned a tensor on meta"),
    (lambda t, x: None, "must return a tensor.*got NoneType"),
    (lambda t, x: (x,), "got tuple"),
    (lambda t, x: x.numpy(), "got ndarray"),
]


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
@pytest.mark.parametrize("steps", [2, None])
@pytest.mark.parametrize(("F", "said"), RETURNS)
def test_F_must_keep_shape_dtype_and_device(F, said, steps, gradient):
    for bad_from in (-1.0, 0.4):
        with pytest.raises(errors.ResidualError, match=said):
            odenet.solve(
                lambda t, x, bad_from: -x if t < bad_from else F(t, x.detach()), X, args=(bad_from,),
                solver="rk4" if steps else "dopri5", steps=steps, gradient=gradient,
            )  # fmt: skip


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("how", [{"solver": "dopri5"}, {"solver": "rk4", "steps": 3}, {"solver": "radau5"}], ids=str)
def test_F_that_changes_x_in_place_is_refused(how, per_sample):
    """Each step went on from what F had made of x."""
    relu = torch.nn.ReLU(inplace=True)
    for F in (lambda t, x: x.mul_(-1), lambda t, x: -relu(x[:, :1]) - x):
        with pytest.raises(errors.ResidualError, match="changed x in place"), torch.no_grad():
            odenet.solve(F, X.clone(), per_sample=per_sample, **how)


BACKENDS = [("native", "dopri5", 8)]
for name, entry in backends.items():
    methods = entry.methods()
    BACKENDS.append((name, next(s for s in ("dopri5", "RK45") if s in methods), None))
    BACKENDS += [(name, "euler", 8)] if "euler" in methods else []
ADAPTIVE = [case[:2] for case in BACKENDS if case[2] is None]


@pytest.mark.parametrize(("backend", "solver", "steps"), BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("after", [-1.0, 0.3])
def test_F_that_is_not_finite_is_said_to_be_so(backend, solver, steps, bad, after):
    def F(t, x):
        y = -x
        if t > after:
            y = y.clone()
            y[1] += bad
        return y

    with pytest.raises(errors.NonFiniteFunctionError, match="F returned NaN or infinity") as raised:
        odenet.solve(F, torch.ones(3, 2), solver=solver, steps=steps, backend=backend)
    error = raised.value
    assert error.status == "nonfinite_function" and error.nfe > 0
    if backend == "native":
        assert error.sample == 1 and "sample 1" in str(error)
        assert max(0.0, after) <= error.t + abs(error.h) <= 1.0 + 1e-9


@pytest.mark.parametrize(("backend", "solver", "steps"), BACKENDS)
def test_an_initial_state_that_is_not_finite_is_said_to_be_so(backend, solver, steps):
    x0 = torch.ones(3, 2)
    x0[2, 0] = float("nan")
    for first_step in (None, 0.1) if steps is None else (None,):
        with pytest.raises(errors.NonFiniteStateError, match="the initial state holds NaN or infinity"):
            odenet.solve(decay, x0, solver=solver, steps=steps, backend=backend, first_step=first_step)


@pytest.mark.parametrize(("backend", "solver", "steps"), BACKENDS)
def test_a_solution_that_blows_up_ends_in_a_solve_error(backend, solver, steps):
    """x' = x², x(0) = 2 is infinite at t = 1/2."""
    with pytest.raises(errors.SolveError) as raised:
        odenet.solve(
            lambda t, x: x**2, torch.full((1, 1), 2.0), (0, 1000 if steps else 1), solver=solver, steps=steps,
            backend=backend,
        )  # fmt: skip
    assert raised.value.nfe > 0
    if steps is None:
        assert raised.value.t == pytest.approx(0.5, abs=0.05)


def test_a_state_that_overflows_though_F_is_finite_is_its_own_error():
    huge = torch.finfo(torch.float32).max
    with pytest.raises(errors.NonFiniteStateError, match="the state overflowed at t="):
        odenet.solve(lambda t, x: torch.full_like(x, 0.9 * huge), X, (0, 8), solver="euler", steps=4)


@pytest.mark.parametrize(("backend", "solver"), ADAPTIVE)
def test_a_step_that_underflows_is_its_own_error(backend, solver):
    def jump(t, x):
        return torch.full_like(x, 1e30) if t > 0.5 else torch.zeros_like(x)

    with pytest.raises(errors.StepUnderflowError, match=r"(too small|less than spacing).* at t=0.5"):
        odenet.solve(jump, X.double(), rtol=1e-12, atol=1e-12, backend=backend, solver=solver)


@pytest.mark.parametrize("gradient", gradients_for("dopri5"))
def test_budgets_of_steps_and_evaluations(gradient):
    def stiff(t, x):
        return -1e5 * (x - torch.cos(t))

    backend = odenet.gradients.gradients[gradient].backends[0]
    with pytest.raises(errors.StepBudgetError, match="budget of 50 steps was used up at t="):
        odenet.solve(stiff, X.double(), gradient=gradient, max_steps=50, backend=backend)
    with pytest.raises(
        errors.FunctionBudgetError, match="budget of 100 evaluations of F.*after 100 eval.*max_nfe"
    ) as e:
        odenet.solve(stiff, X.double(), gradient=gradient, max_nfe=100, backend=backend)
    assert e.value.nfe == 100 and e.value.status == "nfe_budget"
    with pytest.raises(errors.FunctionBudgetError):
        odenet.solve(decay, X, solver="euler", steps=10, max_nfe=9, gradient=gradient, backend=backend)
    assert odenet.solve(decay, X, solver="euler", steps=10, max_nfe=10, gradient="autograd").stats.nfe == 10


def test_every_class_of_error_is_raised_by_these_tests_and_rooted_in_one():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert all(issubclass(c, errors.OdenetError) for c in classes)
    statuses = [c.status for c in errors.SolveError.__subclasses__()]
    assert len(set(statuses)) == len(statuses) == 6


@pytest.mark.parametrize(("backend", "solver"), ADAPTIVE)
def test_an_error_of_F_itself_comes_through_as_it_is(backend, solver):
    def F(t, x):
        assert t < 0.5, "my own assertion"
        return -x

    with pytest.raises(AssertionError, match="my own assertion"):
        odenet.solve(F, X, backend=backend, solver=solver)

    def G(t, x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        odenet.solve(G, X, backend=backend, solver=solver)


def test_the_answer_has_the_documented_shape():
    solution = odenet.solve(decay, X, ts=[0.0, 0.5, 1.0])
    assert solution.ys.shape == (3, 2, 3) and solution.ts.tolist() == [0.0, 0.5, 1.0]
    assert solution.ts.dtype == torch.float64 and solution.status == "success"
    assert odenet.solve(decay, X).ys.shape == (1, 2, 3)
    assert odenet.solve(decay, X).last.shape == (2, 3)


def test_F_may_be_a_compiled_module_a_builtin_or_take_anything():
    assert torch.equal(odenet.solve(torch.mul, X, steps=4).last, odenet.solve(lambda t, x: t * x, X, steps=4).last)
    assert torch.equal(odenet.solve(lambda *a: -a[1], X, steps=4).last, odenet.solve(decay, X, steps=4).last)
    F = net()
    compiled = torch.compile(F, backend="eager")
    torch.testing.assert_close(odenet.solve(compiled, X, steps=2).last, odenet.solve(F, X, steps=2).last)

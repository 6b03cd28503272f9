"""The functions of `benchmarks.gradients` under diffrax, with its three adjoints, compiled."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Gradient = Callable[[Tensor], Tensor]


def diffrax_gradients(F: nn.Module, t1: float, tolerance: float, room: int) -> dict[str, Gradient]:
    """Gradients of the sum of squares of x(t1), flat, in the order of x and F's parameters; none without diffrax.

    Args:
        F: a network whose function is in `FUNCTIONS` under the name of its class.
        t1: end of the interval from 0.
        tolerance: relative and absolute.
        room: steps to make room for where they are stored; a cost of its own for "direct".
    """
    if find_spec("diffrax") is None:
        return {}
    import diffrax
    import jax
    import jax.numpy as jnp

    function = FUNCTIONS[type(F).__name__]
    weights = [jnp.asarray(p.detach().numpy()) for p in F.parameters()]

    def gradient(adjoint: Any, room: int) -> Gradient:
        def loss(x: Any, weights: Any) -> Any:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(function),
                diffrax.Dopri5(),
                0.0,
                t1,
                None,
                x,
                args=weights,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                adjoint=adjoint,
                max_steps=room,
            )
            assert solution.ys is not None
            return (solution.ys[-1] ** 2).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1)))

        def flat(x: Tensor) -> Tensor:
            by_x, by_weights = compiled(jnp.asarray(x.numpy()), weights)
            parts = [np.asarray(g).ravel() for g in (by_x, *by_weights)]
            return torch.from_numpy(np.concatenate(parts)).double()

        return flat

    return {
        "diffrax direct": gradient(diffrax.DirectAdjoint(), room),
        "diffrax recursive checkpoint": gradient(diffrax.RecursiveCheckpointAdjoint(), room),
        "diffrax backsolve": gradient(diffrax.BacksolveAdjoint(), 4096),
    }


def _mlp(t: Any, x: Any, weights: Any) -> Any:
    import jax.numpy as jnp

    for number in range(0, len(weights), 2):
        x = x @ weights[number].T + weights[number + 1]
        x = jnp.tanh(x) if number + 2 < len(weights) else x
    return x


def _conv(t: Any, x: Any, weights: Any) -> Any:
    import jax
    import jax.numpy as jnp

    norms, convs = weights[:6], weights[6:]

    def norm(x: Any, number: int) -> Any:
        grouped = x.reshape(x.shape[0], 32, -1)
        grouped = (grouped - grouped.mean(-1, keepdims=True)) / jnp.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
        scale, shift = (part[:, None, None] for part in norms[2 * number : 2 * number + 2])
        return grouped.reshape(x.shape) * scale + shift

    for number in range(2):
        x = jax.nn.relu(norm(x, number))
        x = jnp.concatenate([jnp.broadcast_to(t, (x.shape[0], 1, *x.shape[2:])).astype(x.dtype), x], 1)
        weight, bias = convs[2 * number : 2 * number + 2]
        x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        x = x + bias[:, None, None]
    return norm(x, 2)


FUNCTIONS = {"Tanh": _mlp, "ConvTwice": _conv}

"""Learning-rate schedules by the number of steps: torch's own classes, stepped once for each batch.

Each is a factory `(optimizer, total_steps, ...) -> LRScheduler`, for `functools.partial` or Hydra's `_partial_`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from odenet.errors import InputError


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    max_lr: float | None = None,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    cycle_momentum: bool = False,
) -> LRScheduler:
    """One cycle: cosine up from max_lr / div_factor to max_lr, then cosine down.

    Args:
        optimizer: the optimizer.
        total_steps: optimizer steps of the whole run.
        max_lr: peak; the optimizer's own learning rate by default.
        pct_start: share of the steps that go up, in [0, 1].
        div_factor: max_lr divided by the first learning rate.
        final_div_factor: first learning rate divided by the last.
        cycle_momentum: let momentum (or beta1) fall while the learning rate rises.

    Returns:
        `torch.optim.lr_scheduler.OneCycleLR`.

    Raises:
        InputError: a share or factor is out of range.

    Reference:
        L. N. Smith, N. Topin, Super-Convergence, 2017.
    """
    if not 0 <= pct_start <= 1:
        raise InputError(f"pct_start must be in [0, 1], got {pct_start!r}")
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups] if max_lr is None else max_lr,
        total_steps=_steps(total_steps),
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=cycle_momentum,
    )


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.0, min_lr: float = 0.0) -> LRScheduler:
    """Half a cosine from the optimizer's learning rate down to `min_lr`, after a linear warm-up.

    Args:
        optimizer: the optimizer.
        total_steps: optimizer steps of the whole run.
        warmup: share of the steps in which the learning rate grows linearly, in [0, 1).
        min_lr: learning rate that the cosine ends at.

    Returns:
        `CosineAnnealingLR`, behind a `LinearLR` if there is a warm-up.

    Raises:
        InputError: `warmup` is not in [0, 1).

    Reference:
        I. Loshchilov, F. Hutter, SGDR, ICLR 2017.
    """
    if not 0 <= warmup < 1:
        raise InputError(f"warmup is a share of the steps in [0, 1), got {warmup!r}")
    steps = _steps(total_steps)
    rising = min(round(warmup * steps), steps - 1)
    falling = CosineAnnealingLR(optimizer, T_max=steps - rising, eta_min=min_lr)
    if rising == 0:
        return falling
    up = LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising)
    return SequentialLR(optimizer, [up, falling], milestones=[rising])


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The optimizer's own learning rate at every step."""
    return ConstantLR(optimizer, factor=1.0, total_iters=_steps(total_steps))


def multistep(
    optimizer: Optimizer, total_steps: int, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
) -> LRScheduler:
    """The learning rate times `gamma` at each milestone.

    Args:
        optimizer: the optimizer.
        total_steps: optimizer steps of the whole run.
        milestones: increasing shares of the steps, each in (0, 1).
        gamma: factor at each milestone, positive.

    Returns:
        `torch.optim.lr_scheduler.MultiStepLR`.

    Raises:
        InputError: the milestones do not increase or are not in (0, 1), or gamma is not positive.
    """
    shares = list(milestones)
    if any(not 0 < share < 1 for share in shares) or shares != sorted(set(shares)):
        raise InputError(f"milestones must be increasing shares of the steps in (0, 1), got {shares}")
    if not gamma > 0:
        raise InputError(f"gamma must be positive, got {gamma!r}")
    steps = _steps(total_steps)
    return MultiStepLR(optimizer, milestones=[round(share * steps) for share in shares], gamma=gamma)


def _steps(total_steps: int) -> int:
    if total_steps < 1:
        raise InputError(f"total_steps must be a positive integer, got {total_steps!r}")
    return total_steps

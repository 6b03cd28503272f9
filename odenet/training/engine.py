"""Lightning Fabric as it is used here: started from the settings, and sums over its processes."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from odenet.errors import InputError
from odenet.training.settings import Settings


def launch(settings: Settings) -> Fabric:
    """The running engine.

    Raises:
        InputError: the device or the precision cannot be had.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy=settings.strategy,
            precision=settings.precision,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"cannot train with accelerator={settings.accelerator!r}, devices={settings.devices!r}, "
            f"precision={settings.precision!r} ({reason}); "
            "accelerator='cpu', devices=1, precision='32-true' works everywhere"
        ) from error
    fabric.launch()
    return fabric


def sum_over_processes(fabric: Fabric, numbers: list[float]) -> list[float]:
    """Each number summed over all processes."""
    if fabric.world_size == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64, device=fabric.device)
    torch.distributed.all_reduce(total)
    return total.tolist()

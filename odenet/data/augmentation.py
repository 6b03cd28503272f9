"""Train-time augmentation of a whole batch at once, on the batch's device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def crop_and_flip(batch: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crop out of the zero-padded image and random horizontal flip, drawn for each sample.

    Args:
        batch: (batch, channels, height, width), uint8 or float.
        generator: source of every random number, on the batch's device.
        padding: pixels of zeros on each side before the crop.

    Returns:
        A tensor of the batch's shape, dtype and device.
    """
    n, channels, height, width = batch.shape
    device = batch.device
    top, left = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=device)
    flip = torch.randint(2, (n, 1), generator=generator, device=device, dtype=torch.bool)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(flip, columns.flip(0), columns)
    padded = pad(batch, (padding, padding, padding, padding))
    sample = torch.arange(n, device=device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, channels, 1, 1)
    return padded[sample, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]

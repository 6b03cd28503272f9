"""The order in which training samples come: a function of the seed, the epoch and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from odenet.errors import InputError


class Samples(Dataset):
    """Samples and labels in memory; a batch is one index operation.

    Args:
        x: (n, *shape) samples.
        y: (n,) labels.
    """

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]


def derived_seed(*numbers: int) -> int:
    """A 32-bit seed that is a function of all of `numbers`, without patterns between neighbouring ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def batches(fabric: Fabric, samples: Samples, batch_size: int, seed: int, epoch: int) -> Any:
    """The shuffled batches of one epoch, on the device of this process.

    With several processes each gets its share of every batch; together they see the batches of one process.

    Args:
        fabric: the running engine.
        samples: the training set.
        batch_size: samples in one batch over all processes.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        An iterable with a length over (x, y).

    Raises:
        InputError: the batch cannot be shared equally among the processes.
    """
    if batch_size % fabric.world_size:
        raise InputError(f"batch_size must be a multiple of the {fabric.world_size} processes, got {batch_size}")
    order = DistributedSampler(
        samples,
        num_replicas=fabric.world_size,
        rank=fabric.global_rank,
        shuffle=True,
        seed=derived_seed(seed, epoch),
    )
    loader = DataLoader(
        samples,
        batch_size=batch_size // fabric.world_size,
        sampler=order,
        collate_fn=_as_it_is,
        pin_memory=fabric.device.type == "cuda",
    )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


def _as_it_is(batch: Any) -> Any:
    return batch

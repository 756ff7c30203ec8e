"""The sample order: a function of (seed, epoch) alone, however many workers there are.

permutation of an epoch   |---- step 0 ----|---- step 1 ----| ... | dropped |
N images, W = 2           | rank 0 | rank 1| rank 0 | rank 1|
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from trainer.errors import SpecError
from trainer.seeding import permutation

__all__ = ["epoch_batches", "local_slice", "num_dropped", "steps_per_epoch", "unbroken_batches"]


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return how many whole global batches an epoch has.

    Raises:
        SpecError: If there is not even one.
    """
    if batch_size > num_images:
        raise SpecError(
            f"batch_size {batch_size} is more than the {num_images} images to pretrain on; use at most {num_images}",
            field="batch_size",
            allowed=num_images,
        )
    return num_images // batch_size


def num_dropped(num_images: int, batch_size: int) -> int:
    """Return how many images an epoch leaves out: those of its last, incomplete batch."""
    return num_images - steps_per_epoch(num_images, batch_size) * batch_size


def local_slice(*, step: int, batch_size: int, rank: int, num_workers: int) -> slice:
    """Return the part of an epoch's permutation that `rank` reads: the rank-th contiguous B of the step's N.

    Raises:
        SpecError: If the workers do not divide the global batch.
    """
    if batch_size % num_workers:
        raise SpecError(f"batch_size {batch_size} is not divisible by {num_workers} workers", field="batch_size")
    local = batch_size // num_workers
    start = step * batch_size + rank * local
    return slice(start, start + local)


def epoch_batches(
    *, seed: int, epoch: int, num_images: int, batch_size: int, rank: int = 0, num_workers: int = 1, first_step: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Yield the positions, (B,), that `rank` reads at each step of an epoch, from `first_step` (0 is the first) on."""
    order = np.asarray(permutation(seed=seed, epoch=epoch, size=num_images), np.int64)
    for step in range(first_step, steps_per_epoch(num_images, batch_size)):
        yield order[local_slice(step=step, batch_size=batch_size, rank=rank, num_workers=num_workers)]


def unbroken_batches(
    *, seed: int, first_epoch: int, num_images: int, batch_size: int, rank: int = 0, num_workers: int = 1
) -> Iterator[NDArray[np.int64]]:
    """Yield the positions, (B,), that `rank` reads at each step without end, no image being dropped.

    A batch takes the rest of one epoch and the start of the next; where images are few, several epochs.
    """
    mine = local_slice(step=0, batch_size=batch_size, rank=rank, num_workers=num_workers)
    ahead = np.empty(0, np.int64)
    for epoch in count(first_epoch):
        ahead = np.concatenate([ahead, permutation(seed=seed, epoch=epoch, size=num_images)])
        while len(ahead) >= batch_size:
            yield ahead[:batch_size][mine]
            ahead = ahead[batch_size:]

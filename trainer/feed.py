"""The images of each step on this rank's device, the next ones being read while the step computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.dataset import Subset
from trainer.data.order import epoch_batches, steps_per_epoch
from trainer.data.reader import BatchReader
from trainer.team import Team
from trainer.transfer import to_device

__all__ = ["Feed", "LocalBatch"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalBatch:
    """This rank's part of the global batch of one step."""

    step: int  # of the whole run, from 0
    images: Tensor  # (B, size, size, 3), uint8
    labels: Tensor | None  # (B,)
    sample_ids: Tensor  # (B,), on the CPU, where their draws are decided


class Feed:
    """Serves the batches that seed and epoch name, from any step of the run on."""

    def __init__(self, subset: Subset, *, seed: int, batch_size: int, team: Team) -> None:
        """Build one; `batch_size` is that of all ranks together, N."""
        self.steps_per_epoch = steps_per_epoch(len(subset), batch_size)
        self._subset = subset
        self._seed = seed
        self._batch_size = batch_size
        self._team = team

    def read(self, epoch: int, *, first_step: int) -> Iterator[LocalBatch]:
        """Yield the batches of an epoch (from 0) that `first_step` of the run does not lie behind."""
        epoch_start = epoch * self.steps_per_epoch
        start = max(epoch_start, first_step)
        positions = epoch_batches(
            seed=self._seed,
            epoch=epoch,
            num_images=len(self._subset),
            batch_size=self._batch_size,
            rank=self._team.rank,
            num_workers=self._team.world_size,
            first_step=start - epoch_start,
        )
        device = self._team.device
        for step, batch in enumerate(BatchReader(self._subset).read(positions), start=start):
            yield LocalBatch(
                step=step,
                images=to_device(torch.from_numpy(batch.images), device),
                labels=None if batch.labels is None else to_device(torch.from_numpy(batch.labels), device),
                sample_ids=torch.from_numpy(batch.sample_ids),
            )

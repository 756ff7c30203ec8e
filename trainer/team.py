"""The team: the workers of one start of a trial, and this one's place among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from trainer.small_messages import SmallMessages

__all__ = ["Team", "usable_workers"]


@dataclass(frozen=True, kw_only=True)
class Team:
    """W workers that share every batch; alone, `group` is None and nothing is sent."""

    rank: int = 0
    world_size: int = 1
    group: ProcessGroup | None = None
    device: torch.device = torch.device("cpu")
    messages: SmallMessages | None = None  # a light path beside `group`, on CPU

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which writes for all."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Return this rank's contiguous part of `total` items; the first ranks may have one more."""
        size, rest = divmod(total, self.world_size)
        start = self.rank * size + min(self.rank, rest)
        return slice(start, start + size + (self.rank < rest))

    def agree_on(self, value: int) -> int:
        """Return rank 0's value on every rank, which all call."""
        if self.group is None:
            return value
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(shared, group_src=0, group=self.group)
        return int(shared.item())


def usable_workers(batch_size: int, available: int) -> int:
    """Return the largest number of workers, up to `available`, that divides the global batch."""
    return next(workers for workers in range(available, 0, -1) if batch_size % workers == 0)

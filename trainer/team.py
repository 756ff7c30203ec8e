"""The team: the workers of one start of a trial, and this one's place among them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist

# First, for the defaults of its functions keep the group that exists as it is imported, by torch's compiler
# say: its threads would live on into the interpreter's end, which they can abort.
import torch.distributed.nn.functional
from torch.distributed import ProcessGroup

from trainer.small_messages import SmallMessages

__all__ = ["BACKENDS", "Team", "usable_workers"]

# By device. What ranks agree on beside the steps goes over gloo everywhere: it connects all of them at
# once, so that each notices when another has gone, and it waits as long as it is told to.
BACKENDS: Final = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}

PATIENCE: Final = timedelta(days=1)  # with a rank that still works; one that died has closed its connections


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

    def numbers_of_all(self, *numbers: int) -> list[list[int]]:
        """Return every rank's `numbers`, of 64 bits, in rank order. All ranks call, and wait for the last of them.

        They wait for hours where a collective of a step would give up: one may prepare its node's
        data, or rank 0 judge a large data set, while the others have nothing to do.

        Raises:
            RuntimeError: If a rank has gone.
        """
        if self.group is None:
            return [list(numbers)]
        rows = torch.zeros(self.world_size, len(numbers), dtype=torch.int64)
        rows[self.rank] = torch.tensor(numbers)
        options = dist.AllreduceOptions()  # its sum is a gather: all other rows are zeros
        options.timeout = PATIENCE
        self.group.allreduce([rows], options).wait()
        return rows.tolist()

    def agree_on(self, value: int) -> int:
        """Return rank 0's value on every rank, which all call."""
        return self.numbers_of_all(value)[0][0]

    def meet(self) -> None:
        """Wait until every rank has come here, however long one of them works."""
        self.numbers_of_all(0)


def usable_workers(batch_size: int, available: int) -> int:
    """Return the largest number of workers, up to `available`, that divides the global batch."""
    return next(workers for workers in range(available, 0, -1) if batch_size % workers == 0)

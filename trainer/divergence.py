"""A loss that is no number any more: which rank saw it first, and what to do about it."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import NonFiniteLoss
from trainer.team import Team

__all__ = ["non_finite_loss"]


def non_finite_loss(step: int, local_loss: Tensor, team: Team) -> NonFiniteLoss:
    """Return the error, naming the first rank whose own loss was not finite. All ranks call."""
    losses = [torch.empty_like(local_loss) for _ in range(team.world_size)]
    if team.group is None:
        losses = [local_loss]
    else:
        dist.all_gather(losses, local_loss, group=team.group)
    values = [float(loss) for loss in losses]
    rank = next((index for index, value in enumerate(values) if not math.isfinite(value)), 0)
    return NonFiniteLoss(
        f"the loss became {values[rank]} at step {step} on rank {rank}; lower optim.base_lr, lengthen "
        "optim.warmup_epochs, raise loss.temperature, or use precision float32",
        step=step,
        rank=rank,
        value=str(values[rank]),
    )

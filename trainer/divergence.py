"""A loss, or an h, that is no number any more: which rank saw it first, and what to do about it."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from trainer.errors import NonFiniteLoss
from trainer.team import Team

__all__ = ["NonFiniteH", "non_finite_h", "non_finite_loss", "require_finite"]

WAY_OUT = "lower optim.base_lr, lengthen optim.warmup_epochs, raise loss.temperature, or use precision float32"


class NonFiniteH(ArithmeticError):
    """The encoder's representations are not finite."""


def require_finite(h_MR: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return h; raise NonFiniteH where it has a NaN or an infinity, on all ranks that have the same h."""
    if not np.isfinite(h_MR).all():
        raise NonFiniteH(str(h_MR[~np.isfinite(h_MR)][0]))
    return h_MR


def non_finite_h(step: int, error: NonFiniteH) -> NonFiniteLoss:
    """Return the error of an update that no loss has shown yet: the encoder was evaluated right after it."""
    return NonFiniteLoss(
        f"h became {error} with the update of step {step}, as the loss would next; {WAY_OUT}",
        step=step,
        rank=0,
        value=str(error),
    )


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
        f"the loss became {values[rank]} at step {step} on rank {rank}; {WAY_OUT}",
        step=step,
        rank=rank,
        value=str(values[rank]),
    )

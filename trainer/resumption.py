"""Where a start of a trial begins: at the newest checkpoint, the same one on every rank."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from trainer.checkpoint import CheckpointStore, restore
from trainer.context import ParentTrial, TrialContext
from trainer.errors import CheckpointMissing
from trainer.team import Team

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["resume"]

logger = logging.getLogger(__name__)


def resume(
    checkpoints: CheckpointStore, learner: nn.Module, optimizer: Optimizer, *, team: Team, context: TrialContext
) -> int:
    """Restore the newest checkpoint that can be read and return its step, 0 where there is none. All ranks call.

    Raises:
        CheckpointMissing: If the trial continues an experiment that has no checkpoint.
    """
    step = team.agree_on(checkpoints.latest_step() if team.is_first else 0)
    if step:
        restore(checkpoints.load(step), learner, optimizer)
        logger.info("resumed from the checkpoint of step %d", step)
    elif context.parent is not None and context.is_only_trial:  # a sweep's trial may be one its parent did not have
        raise _nothing_to_continue(context.parent)
    return step


def _nothing_to_continue(parent: ParentTrial) -> CheckpointMissing:
    return CheckpointMissing(
        f"{parent.experiment_id}, which this experiment continues, has no checkpoint that can be read; clone it "
        "to train from the start",
        experiment_id=parent.experiment_id,
        trial_id=parent.trial_id,
    )

"""Fine-tuning: a copy of the encoder and a linear layer on it, both trained on labels (paper, appendix B.5).

SGD with Nesterov momentum and no regularisation, on views that are cropped and mirrored only; the
rate falls by a cosine without warm-up, as in the paper's reference code. As in pretraining, each rank
takes its part of the batch of N, so that the result is the same for every number of workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import islice
from typing import Final

import torch
from torch import nn
from torch.optim import SGD

from trainer import metric_names
from trainer.data.dataset import Subset
from trainer.data.order import local_slice, unbroken_batches
from trainer.data.reader import BatchReader
from trainer.encoder import Encoder
from trainer.learner import SimclrLearner, SupervisedLearner, prepare_learner
from trainer.precision import Precision
from trainer.schedule import learning_rate
from trainer.spec import CropResize, HorizontalFlip, PretrainSpec, ViewsSpec
from trainer.step import StepOutcome, Stepper, steps_between_looks
from trainer.team import Team
from trainer.transfer import to_device
from trainer.views import ViewDrawer

__all__ = ["Interrupted", "fine_tune"]

logger = logging.getLogger(__name__)

VIEWS: Final = ViewsSpec(operations=(CropResize(), HorizontalFlip()))  # B.5
MOMENTUM: Final = 0.9  # B.5
FIRST_EPOCH: Final = 1 << 32  # in the names of orders and views: beyond any epoch of pretraining


class Interrupted(Exception):
    """A stop was wished for; raised on all ranks at the same step."""


def fine_tune(
    encoder: Encoder,
    labelled: Subset,
    spec: PretrainSpec,
    *,
    num_classes: int,
    epochs: int,
    team: Team,
    precision: Precision,
    wishes_stop: Callable[[], bool],
) -> nn.Module:
    """Return the fine-tuned network, from (B, 3, H, W) in 0..1 to logits (B, K); all ranks call.

    It is a function of the encoder's weights, the images and `spec`. The encoder stays as it is.

    Args:
        encoder: Where it starts; batch norm is over the global batch here too.
        labelled: What it is trained on, few images or many: batches run on across epochs, as in the
            reference code, so none is dropped and a batch may hold an image in several views.
        spec: Of the run.
        num_classes: K.
        epochs: Passes over `labelled`, rounded up to whole batches.
        team: The ranks that share each batch.
        precision: Of the run.
        wishes_stop: Whether this rank wishes to stop; asked at each step.

    Raises:
        Interrupted: If any rank wished to stop.
    """
    learner = _classifier(encoder, spec, num_classes=num_classes, team=team, precision=precision)
    optimizer = SGD(learner.parameters(), lr=0.0, momentum=MOMENTUM, nesterov=True)
    stepper = Stepper(learner, optimizer, team=team, precision=precision, micro_batch=spec.memory.micro_batch)
    drawer = ViewDrawer(
        VIEWS,
        image_size=spec.data.image_size,
        seed=spec.seed,
        dtype=precision.dtype,
        channels_last=spec.channels_last,
    )
    ranks = {"batch_size": spec.batch_size, "rank": team.rank, "num_workers": team.world_size}
    order = unbroken_batches(seed=spec.seed, first_epoch=FIRST_EPOCH, num_images=len(labelled), **ranks)
    # An image may come twice in a batch: its views are named by their places in it.
    place_ids_B = torch.arange(spec.batch_size)[local_slice(step=0, **ranks)]
    num_steps = -(-epochs * len(labelled) // spec.batch_size)
    look_every, outcome = steps_between_looks(team.device), None
    for step, batch in enumerate(BatchReader(labelled).read(islice(order, num_steps))):
        images_BHWC = to_device(torch.from_numpy(batch.images), team.device)
        outcome = stepper(
            drawer.draw(images_BHWC, sample_ids_B=place_ids_B, epoch=FIRST_EPOCH + step, view=0),
            None if batch.labels is None else to_device(torch.from_numpy(batch.labels), team.device),
            learning_rate=learning_rate(step, peak=spec.fine_tune_lr(), warmup_steps=0, total_steps=num_steps),
            wishes_stop=wishes_stop(),
        )
        if step % look_every == 0 and outcome.should_stop:
            raise Interrupted
    _warn_of_divergence(outcome, team)
    learner.zero_grad(set_to_none=True)
    return nn.Sequential(learner.encoder, learner.head)


def _classifier(
    encoder: Encoder, spec: PretrainSpec, *, num_classes: int, team: Team, precision: Precision
) -> SimclrLearner | SupervisedLearner:
    """Return a copy of the encoder under a linear layer that starts from the seed, ready to train."""
    supervised = spec.model_copy(update={"method": "supervised"})
    learner = prepare_learner(supervised, num_classes=num_classes, team=team, dtype=precision.dtype)
    learner.encoder.load_state_dict(encoder.state_dict())
    return learner.train()


def _warn_of_divergence(last: StepOutcome | None, team: Team) -> None:
    """Say that an accuracy at chance comes from the rate: it is no reason to fail a pretraining that is done."""
    loss = last.metrics()[metric_names.LOSS] if last is not None else 0.0
    if team.is_first and not math.isfinite(loss):
        logger.warning("fine-tuning diverged (loss %s); lower evaluation.fine_tune_base_lr", loss)

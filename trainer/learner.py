"""The learner: everything that is trained, and the loss it is trained on.

`simclr` (paper, section 2.1) compares the projections of two views; `supervised` is the paper's
baseline with the same encoder, views and budget (Table 1, Fig. 7): it classifies both views.

Outputs of views and the loss of all outputs are apart, so that outputs can be computed in
micro-batches (`memory.micro_batch`) while the loss sees the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from trainer import metric_names
from trainer.batch_norm import globalize_batch_norm
from trainer.encoder import build_encoder, checkpoint_blocks
from trainer.losses import build_objective
from trainer.projection_head import build_projection_head
from trainer.seeding import initialisation_generator
from trainer.spec import PretrainSpec
from trainer.team import Team

__all__ = ["SimclrLearner", "SupervisedLearner", "build_learner", "prepare_learner"]


class SimclrLearner(nn.Module):
    """f and g, compared by a contrastive objective."""

    def __init__(self, spec: PretrainSpec, *, group: ProcessGroup | None) -> None:
        super().__init__()
        self.encoder = build_encoder(spec.encoder, seed=spec.seed)
        self.head = build_projection_head(spec.projection_head, width_of_h=self.encoder.width_of_h, seed=spec.seed)
        self._objective = build_objective(spec.loss, group=group)

    def outputs(self, views_MCHW: Tensor) -> Tensor:
        """Return z = g(f(x)), a row for each view."""
        z: Tensor = self.head(self.encoder(views_MCHW))
        return z

    def metrics(self, outputs_2BD: Tensor, labels_B: Tensor | None) -> dict[str, Tensor]:
        """Return the contrastive loss, accuracy and entropy (Table 5); labels are not looked at."""
        del labels_B
        output = self._objective(outputs_2BD)
        return {
            metric_names.LOSS: output.loss,
            metric_names.CONTRASTIVE_ACCURACY: output.contrastive_accuracy,
            metric_names.ENTROPY: output.entropy,
        }


class SupervisedLearner(nn.Module):
    """f and a linear classifier, trained on labels."""

    def __init__(self, spec: PretrainSpec, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = build_encoder(spec.encoder, seed=spec.seed)
        self.head = nn.Linear(self.encoder.width_of_h, num_classes)
        generator = initialisation_generator(spec.seed)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def outputs(self, views_MCHW: Tensor) -> Tensor:
        """Return the logits of each view."""
        logits: Tensor = self.head(self.encoder(views_MCHW))
        return logits

    def metrics(self, outputs_MK: Tensor, labels_B: Tensor | None) -> dict[str, Tensor]:
        """Return the mean cross-entropy over the views of all images, one each or both, in float32 or wider."""
        if labels_B is None:
            raise ValueError("supervised training needs labels")
        logits = outputs_MK if outputs_MK.dtype == torch.float64 else outputs_MK.float()
        return {metric_names.LOSS: functional.cross_entropy(logits, labels_B.repeat(len(logits) // len(labels_B)))}


def build_learner(
    spec: PretrainSpec, *, num_classes: int | None, group: ProcessGroup | None
) -> SimclrLearner | SupervisedLearner:
    """Return the learner of `spec.method`, initialised from its seed alone."""
    if spec.method == "simclr":
        return SimclrLearner(spec, group=group)
    if num_classes is None:
        raise ValueError("supervised training needs labels")
    return SupervisedLearner(spec, num_classes=num_classes)


def prepare_learner(
    spec: PretrainSpec, *, num_classes: int | None, team: Team, dtype: torch.dtype
) -> SimclrLearner | SupervisedLearner:
    """Return a learner ready to train as a member of `team`: on its device, batch norm over all of it."""
    learner = build_learner(spec, num_classes=num_classes, group=team.group)
    if spec.memory.activation_checkpointing:
        checkpoint_blocks(learner.encoder)
    learner = learner.to(device=team.device, dtype=dtype)
    if spec.channels_last:
        learner = learner.to(memory_format=torch.channels_last)
    # changes what is inside, not the learner itself
    globalize_batch_norm(learner, group=team.group, messages=team.messages)
    return learner

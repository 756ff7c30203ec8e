"""The objectives of the paper behind one interface: `build_objective(spec, group=...)(z_2BD)`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.losses.agreement import agreement_of
from trainer.losses.margin import margin_triplet_and_views
from trainer.losses.nt_logistic import nt_logistic_and_views
from trainer.losses.nt_xent import nt_xent_and_views
from trainer.losses.similarity import Views
from trainer.spec import LossSpec

__all__ = ["LossOutput", "Objective", "build_objective"]


@dataclass(frozen=True)
class LossOutput:
    """What an objective says of this rank's anchors; the mean over ranks of each is the global value."""

    loss: Tensor  # 0-dim, float32 or wider, differentiable
    contrastive_accuracy: Tensor  # 0-dim, 0..1, no gradient (SimCLR, Table 5)
    entropy: Tensor  # 0-dim, nats, no gradient (SimCLR, Table 5)


@dataclass(frozen=True)
class Objective:
    """A contrastive objective for the ranks of `group`; z is `[2B, D]`, first views then second views."""

    spec: LossSpec
    group: ProcessGroup | None

    def __call__(self, z_2BD: Tensor) -> LossOutput:
        """Return the loss and how well views agree, from one gather of the projections."""
        loss, views = self._loss_and_views(z_2BD)
        measured = agreement_of(views, temperature=self.spec.temperature)
        return LossOutput(loss, measured.contrastive_accuracy, measured.entropy)

    def loss(self, z_2BD: Tensor) -> Tensor:
        """Return the loss alone, at no cost for the rest."""
        return self._loss_and_views(z_2BD)[0]

    def _loss_and_views(self, z_2BD: Tensor) -> tuple[Tensor, Views]:
        spec, group = self.spec, self.group
        if spec.kind == "nt_xent":
            return nt_xent_and_views(z_2BD, temperature=spec.temperature, normalize=spec.normalize, group=group)
        if spec.kind == "nt_logistic":
            return nt_logistic_and_views(
                z_2BD,
                temperature=spec.temperature,
                normalize=spec.normalize,
                semi_hard=spec.semi_hard,
                group=group,
            )
        return margin_triplet_and_views(
            z_2BD, margin=spec.margin, normalize=spec.normalize, semi_hard=spec.semi_hard, group=group
        )


def build_objective(spec: LossSpec, *, group: ProcessGroup | None) -> Objective:
    """Return the objective that `spec` names (SimCLR, Tables 2, 4 and 5); None keeps to this process."""
    return Objective(spec, group)

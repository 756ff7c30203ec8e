"""One optimiser update, the same for every number of workers.

Each rank holds B of the N images. The loss of its own anchors is differentiated, and one flat
all-reduce in a fixed order averages gradients, metrics and the wish to stop over ranks: after it
every rank knows the same numbers and makes the same update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.batch_norm import hide_statistics_from_compiler
from trainer.collectives import mean_flat_
from trainer.optim import set_learning_rate

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainer.learner import SimclrLearner, SupervisedLearner
    from trainer.precision import Precision
    from trainer.team import Team

__all__ = ["StepOutcome", "Stepper", "steps_between_looks"]

LOOK_EVERY_STEPS = 16  # where looking waits for the device


def steps_between_looks(device: torch.device) -> int:
    """Return after how many steps outcomes are read: on the host at once, elsewhere in groups, so that none waits."""
    return 1 if device.type == "cpu" else LOOK_EVERY_STEPS


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a step left, still on the device: reading it is what synchronises."""

    names: tuple[str, ...]
    values: Tensor  # [len(names) + 1]: global metrics, then the share of ranks that wish to stop
    local_loss: Tensor  # 0-dim, this rank's

    def metrics(self) -> dict[str, float]:
        """Return the global metrics by name."""
        return dict(zip(self.names, self.values.tolist()[:-1], strict=True))

    @property
    def should_stop(self) -> bool:
        """Return whether any rank wished to stop; the same on all of them."""
        return bool(self.values[-1].item() > 0)


class Stepper:
    """Updates a learner from batches of views."""

    def __init__(
        self,
        learner: SimclrLearner | SupervisedLearner,
        optimizer: Optimizer,
        *,
        team: Team,
        precision: Precision,
        micro_batch: int | None,
        compile_: bool = False,
    ) -> None:
        self.learner = learner
        self.optimizer = optimizer
        self._team = team
        self._precision = precision
        self._micro_batch = micro_batch
        self._parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        self._outputs = _compiled(learner) if compile_ else learner.outputs

    def __call__(
        self, views_2BCHW: Tensor, labels_B: Tensor | None, *, learning_rate: float, wishes_stop: bool
    ) -> StepOutcome:
        """Make one update; the metrics are those from before it."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._micro_batch is None:
            metrics = self._backward_whole(views_2BCHW, labels_B)
        else:
            metrics = self._backward_in_parts(views_2BCHW, labels_B, rows=self._micro_batch)
        local_loss = metrics["loss"].detach().clone()
        gradients = [gradient_of(parameter) for parameter in self._parameters]
        values = torch.stack([value.detach().to(gradients[0].dtype) for value in metrics.values()])
        # filled on the device: a copy from the host would wait for all that is queued there
        values = torch.cat([values, values.new_full((1,), float(wishes_stop))])
        mean_flat_([*gradients, values], group=self._team.group)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        return StepOutcome(names=tuple(metrics), values=values, local_loss=local_loss)

    def _backward_whole(self, views_2BCHW: Tensor, labels_B: Tensor | None) -> dict[str, Tensor]:
        with self._precision.autocast():
            outputs = self._outputs(views_2BCHW)
        metrics = self.learner.metrics(outputs, labels_B)
        metrics["loss"].backward()  # type: ignore[no-untyped-call]
        return metrics

    def _backward_in_parts(self, views_2BCHW: Tensor, labels_B: Tensor | None, *, rows: int) -> dict[str, Tensor]:
        """Compute the same gradient holding the activations of `rows` images at a time.

        First pass: outputs without a graph, and the gradient of the loss by them. Second pass: each
        part again with a graph, into which its rows of that gradient are sent.
        """
        parts = torch.split(views_2BCHW, 2 * rows)
        with torch.no_grad(), self._precision.autocast():
            outputs = torch.cat([self._outputs(part) for part in parts])
        outputs.requires_grad_()
        metrics = self.learner.metrics(outputs, labels_B)
        metrics["loss"].backward()  # type: ignore[no-untyped-call]
        for part, gradient in zip(parts, torch.split(gradient_of(outputs), 2 * rows), strict=True):
            with self._precision.autocast():
                part_outputs = self._outputs(part)
            part_outputs.backward(gradient)  # type: ignore[no-untyped-call]
        return metrics


def _compiled(learner: SimclrLearner | SupervisedLearner) -> Callable[[Tensor], Tensor]:
    """Return `learner.outputs` compiled, as a whole or, where blocks are recomputed in backward, block by block."""
    torch.compiler.reset()  # what an earlier trial of this process left counts towards a limit
    hide_statistics_from_compiler(learner)
    if not learner.encoder.is_checkpointed:
        return torch.compile(learner.outputs)
    learner.encoder.compile_blocks()
    return learner.outputs


def gradient_of(tensor: Tensor | nn.Parameter) -> Tensor:
    """Return the gradient that backward left; one that is missing is a bug in the graph."""
    if tensor.grad is None:
        raise RuntimeError(f"no gradient reached a tensor of shape {tuple(tensor.shape)}")
    return tensor.grad

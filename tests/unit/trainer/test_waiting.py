"""No step makes the host wait for its device: seen without one, on a stand-in that knows what waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.harness.stand_in import STAND_IN, HostWaits, first_of_a_team, stand_in
from tests.unit.trainer.test_gpu_step import SIDE, Trainee, a_spec
from tests.unit.trainer.test_gpu_views import IDS, LISTS, NAMES, a_drawer
from trainer.data.dataset import Subset
from trainer.feed import Feed
from trainer.spec import Operation, PretrainSpec
from trainer.step import StepOutcome
from trainer.team import Team
from trainer.transfer import to_device

WITHOUT_BATCH_NORM: dict[str, Any] = {
    "encoder": {"name": "resnet8", "norm": "group"},
    "projection_head": {"dim": 8, "batch_norm": False},
}
STEPS: dict[str, dict[str, Any]] = {
    "lars": {},
    "sgd": {"optim": {"kind": "sgd"}},
    "adamw": {"optim": {"kind": "adamw"}},
    "float64": {"precision": "float64"},
    "cold": {"loss": {"temperature": 0.01}},
    "without l2": {"loss": {"normalize": False}},
    "nt_logistic": {"loss": {"kind": "nt_logistic"}},
    "semi-hard": {"loss": {"kind": "nt_logistic", "semi_hard": True}},
    "margin": {"loss": {"kind": "margin", "semi_hard": True}},
    "recomputed": {"memory": {"activation_checkpointing": True}},
    "in parts": {**WITHOUT_BATCH_NORM, "memory": {"micro_batch": 2}},
}


def steps_without_waiting(spec: PretrainSpec, team: Team, *, count: int = 2) -> tuple[StepOutcome, list[str]]:
    """Return the outcome of the last step and the messages of all, from images of the host on."""
    ids = np.arange(count * spec.batch_size)
    subset = Subset(array=np.zeros((len(ids), SIDE, SIDE, 3), np.uint8), sample_ids=ids, labels=np.zeros_like(ids))
    feed = Feed(subset, seed=0, batch_size=spec.batch_size, team=team)
    with stand_in() as device:
        trainee, drawer = Trainee(spec, team), a_drawer(spec.views.resolved_operations())
        with device.waiting_refused():
            for batch in feed.read(0, first_step=0):
                views = drawer.draw_pair(batch.images, sample_ids_B=batch.sample_ids, epoch=0).to(trainee.dtype)
                outcome = trainee.stepper(views, batch.labels, learning_rate=0.5, wishes_stop=True)
    assert batch.step == count - 1
    return outcome, device.messages


@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_for_nothing(name: str) -> None:
    outcome, messages = steps_without_waiting(a_spec(**STEPS[name]), Team(device=STAND_IN))
    assert outcome.values.device == outcome.local_loss.device == STAND_IN
    assert messages == []


def test_a_step_of_a_team_waits_for_nothing_and_sends_one_message_a_layer_and_direction() -> None:
    spec = a_spec()
    with first_of_a_team(2) as group:
        _, messages = steps_without_waiting(spec, Team(device=STAND_IN, group=group, world_size=2))
    norms = [module for module in Trainee(spec, Team()).learner.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 11  # two of them in the head
    of_a_step = {
        "_allgather_base_.default": 11 + 2,
        "allreduce_.default": 11 + 1,
    }  # beside: z, its log-sum-exps, gradients
    assert Counter(messages) == {name: 2 * count for name, count in of_a_step.items()}


@pytest.mark.parametrize("operations", LISTS, ids=NAMES)
def test_drawing_waits_for_nothing(operations: tuple[Operation, ...]) -> None:
    with stand_in() as device:
        images = torch.empty(len(IDS), SIDE, SIDE, 3, dtype=torch.uint8, device=STAND_IN)
        with device.waiting_refused():
            views = a_drawer(operations).draw_pair(images, sample_ids_B=IDS, epoch=1)
    assert (views.device, views.shape) == (STAND_IN, (2 * len(IDS), 3, SIDE, SIDE))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_transfer_waits_for_nothing(dtype: torch.dtype | None) -> None:
    with stand_in() as device, device.waiting_refused():
        moved = to_device(torch.arange(5), STAND_IN, dtype)
    assert (moved.device, moved.dtype) == (STAND_IN, dtype or torch.int64)


WAITING: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a number": lambda there, _: there.sum().item(),
    "a list": lambda there, _: there.tolist(),
    "a question": lambda there, _: bool((there > 0).any()),
    "places": lambda there, _: there.nonzero(),
    "a mask": lambda there, _: there[there > 0],
    "an assignment by a mask": lambda there, _: there.index_put_((there > 0,), there.new_ones(())),
    "a copy back": lambda there, _: there.cpu(),
    "a copy": lambda _, here: here.to(STAND_IN),
    "a copy of what is not pinned": lambda _, here: here.to(STAND_IN, non_blocking=True),
    "a pinned copy that is waited for": lambda _, here: here.pin_memory().to(STAND_IN),
    "a copy into": lambda there, here: there.copy_(here),
    "rows named on the host": lambda there, here: there[here],
}


@pytest.mark.parametrize("name", WAITING)
def test_the_stand_in_tells_what_waits(name: str) -> None:
    with (
        stand_in() as device,
        device.waiting_refused(),
        pytest.raises((HostWaits, RuntimeError), match=r"asks|copies|meta tensors"),
    ):
        WAITING[name](torch.empty(5, dtype=torch.int64, device=STAND_IN), torch.arange(5))

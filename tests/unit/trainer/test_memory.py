"""What a step holds is known before it is made, and a batch that does not fit is refused with what would."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.harness.teams import run_team, trial_context
from trainer import memory
from trainer.context import TrialContext
from trainer.encoder import ARCHITECTURES
from trainer.errors import BatchTooLarge
from trainer.learner import prepare_learner
from trainer.loop import Run, train
from trainer.memory import RUNTIME_BYTES, most_step_memory_bytes, require_memory, step_memory_bytes
from trainer.optim import build_optimizer
from trainer.precision import resolve_precision
from trainer.spec import PretrainSpec
from trainer.step import Stepper
from trainer.storage import open_storage
from trainer.team import Team

CPU = torch.device("cpu")
GB = 10**9
RESNET8: dict[str, Any] = {"encoder": {"name": "resnet8"}}
RESNET18: dict[str, Any] = {"encoder": {"name": "resnet18"}}
WITHOUT_BATCH_NORM: dict[str, Any] = {
    "encoder": {"name": "resnet8", "norm": "group"},
    "projection_head": {"dim": 8, "batch_norm": False},
}
estimate = functools.cache(step_memory_bytes)  # many tests ask for the same


def a_spec(**changes: Any) -> PretrainSpec:
    base = {"data": {"dataset": "shapes"}, **RESNET8, "precision": "float32", "batch_size": 8}
    return PretrainSpec.model_validate(base | changes)


def step_bytes(*, num_workers: int = 1, **changes: Any) -> int:
    """Return what a step holds that grows with it."""
    return estimate(a_spec(**changes), num_workers=num_workers, device=CPU, num_classes=4) - RUNTIME_BYTES


def test_activations_are_those_that_the_architecture_keeps() -> None:
    """By hand: what each convolution of resnet8 and each ReLU leaves for backward, and the views, in float32."""
    stem, first, second, third = 2 * 16 * 32**2, 4 * 16 * 32**2, 5 * 32 * 16**2, 5 * 64 * 8**2
    of_a_view = 4 * (3 * 32**2 + stem + first + second + third)

    grown = step_bytes(batch_size=16) - step_bytes(batch_size=8)

    assert 2 * 8 * of_a_view <= grown <= 1.2 * 2 * 8 * of_a_view


def test_every_way_to_need_less_is_counted() -> None:
    whole = step_bytes()

    # numbers of twice the size, and the patches of the widest layer and of its gradient, unfolded for a while
    unfolded = 8 * 2 * (2 * 8) * (16 * 9) * 32**2
    assert 2 * whole < step_bytes(precision="float64") < 2.02 * whole + unfolded
    assert step_bytes(precision="bfloat16") < 0.7 * whole
    assert step_bytes(memory={"activation_checkpointing": True}) < 0.9 * whole
    assert step_bytes(num_workers=2) < 0.7 * whole
    assert step_bytes(**WITHOUT_BATCH_NORM, memory={"micro_batch": 2}) < 0.5 * step_bytes(**WITHOUT_BATCH_NORM)


def test_the_optimisers_state_is_counted() -> None:
    head: dict[str, Any] = {"projection_head": {"hidden_dim": 2048, "dim": 2048}}
    weights_bytes = 4 * (64 * 2048 + 2048 * 2048)
    momentum, two_moments = (step_bytes(**head, batch_size=2, optim={"kind": kind}) for kind in ("sgd", "adamw"))

    assert momentum >= 3 * weights_bytes
    assert two_moments >= momentum + 0.9 * weights_bytes


def test_the_copy_that_is_fine_tuned_is_counted() -> None:
    head: dict[str, Any] = {"projection_head": {"hidden_dim": 2048, "dim": 2048}}
    plain, tuned = (step_bytes(**head, batch_size=2, evaluation={"fine_tune": asked}) for asked in (False, True))

    assert tuned >= plain + 2 * 4 * (64 * 2048 + 2048 * 2048)


def test_the_supervised_baseline_is_counted_without_a_loss_of_pairs() -> None:
    assert 0 < step_bytes(method="supervised") < step_bytes()


def test_the_loss_of_a_huge_batch_is_told_without_walking_through_it() -> None:
    projections_bytes = 2 * 65_536 * 128 * 4  # those of all workers
    assert step_bytes(batch_size=65_536, num_workers=32_768) > projections_bytes


def test_nothing_is_left_behind() -> None:
    state = torch.get_rng_state()
    step_memory_bytes(a_spec(), num_workers=1, device=CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(torch.zeros(1)) is torch.Tensor
    assert torch.zeros(1).device == CPU


REAL: dict[str, dict[str, Any]] = {
    "resnet8": {**RESNET8, "batch_size": 128},
    "resnet8 in parts": {**WITHOUT_BATCH_NORM, "batch_size": 128, "memory": {"micro_batch": 32}},
    "resnet8 in float64": {**RESNET8, "batch_size": 64, "precision": "float64"},
    "resnet18": {**RESNET18, "batch_size": 8},
    "resnet18 recomputed": {**RESNET18, "batch_size": 16, "memory": {"activation_checkpointing": True}},
}


@pytest.mark.slow  # real steps
@pytest.mark.parametrize("name", REAL)
def test_real_steps_grow_a_process_by_what_was_estimated(tmp_path: Path, name: str) -> None:
    run_team(1, measure, str(tmp_path / "measured.json"), name)  # what one kind freed would hide what another takes
    grown, estimated = json.loads((tmp_path / "measured.json").read_text())

    assert 1 / 1.5 < grown / estimated < 1.5


def measure(team: Team, result: str, name: str) -> None:
    """Write by how much two steps of one kind raised what this process held, and the estimate of it."""
    spec = a_spec(**REAL[name])
    estimated = step_memory_bytes(spec, num_workers=1, device=CPU)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = psutil.Process().memory_info().rss
    make_steps(team, spec)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    grown = int(status["VmHWM"].split()[0]) * 1024 - before
    Path(result).write_text(json.dumps((grown, estimated)))


def make_steps(team: Team, spec: PretrainSpec) -> None:
    precision = resolve_precision(spec.precision, CPU)
    learner = prepare_learner(spec, num_classes=None, team=team, dtype=precision.dtype)
    optimizer = build_optimizer(spec.optim, learner)
    stepper = Stepper(learner, optimizer, team=team, precision=precision, micro_batch=spec.memory.micro_batch)
    views = torch.empty(2 * spec.batch_size, 3, 32, 32, dtype=precision.dtype, memory_format=torch.channels_last)
    views.uniform_()
    for _ in range(2):
        stepper(views, None, learning_rate=0.1, wishes_stop=False)


# --- the refusal ----------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what sets how much a worker has left."""
    monkeypatch.setattr(memory, "step_memory_bytes", estimate)
    return lambda free_bytes: monkeypatch.setattr(memory, "free_memory_bytes", lambda _: free_bytes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 2, "optim": {"kind": "adamw"}, "projection_head": {"hidden_dim": 2048, "dim": 2048}},
        {"precision": "float64"},
        {"precision": "bfloat16"},
        {"method": "supervised"},
        {"evaluation": {"fine_tune": True}, "optim": {"kind": "adamw"}},
        WITHOUT_BATCH_NORM,
        *(pytest.param({"encoder": {"name": name}}, marks=pytest.mark.slow) for name in ARCHITECTURES),
        pytest.param({"encoder": {"name": "resnet50", "width": 4}, "batch_size": 2}, marks=pytest.mark.slow),
        pytest.param({"encoder": {"name": "resnet18", "stem": "imagenet"}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_quick_bound_is_one(changes: dict[str, Any]) -> None:
    spec = a_spec(**changes)
    bound = most_step_memory_bytes(spec, num_images=spec.batch_size, device=CPU, num_classes=4)
    assert bound > estimate(spec, num_workers=1, device=CPU, num_classes=4)


def test_what_surely_fits_is_not_counted(monkeypatch: pytest.MonkeyPatch, room: Callable[[int], None]) -> None:
    monkeypatch.delattr(memory, "step_memory_bytes")
    room(10 * GB)
    require_memory(a_spec(batch_size=256), num_classes=4, team=Team())


def refused(**changes: Any) -> BatchTooLarge:
    with pytest.raises(BatchTooLarge) as caught:
        require_memory(a_spec(**changes), num_classes=4, team=Team())
    return caught.value


def test_a_batch_that_just_fits_is_let_through(room: Callable[[int], None]) -> None:
    room(RUNTIME_BYTES + step_bytes())
    require_memory(a_spec(), num_classes=4, team=Team())
    room(RUNTIME_BYTES + step_bytes() - 1)
    assert refused().context["images_per_worker"] == 8


def test_the_largest_micro_batch_that_fits_is_named(room: Callable[[int], None]) -> None:
    free_bytes = RUNTIME_BYTES + step_bytes(**WITHOUT_BATCH_NORM, memory={"micro_batch": 2})
    room(free_bytes)

    error = refused(**WITHOUT_BATCH_NORM)

    assert error.context["micro_batch"] == 2
    assert error.context["available_bytes"] == free_bytes < error.context["needed_bytes"]
    assert "set memory.micro_batch to 2 at most" in error.message
    assert error.record()["code"] == "batch_too_large"


def test_with_batch_norm_recomputation_and_workers_are_named_instead(room: Callable[[int], None]) -> None:
    room(RUNTIME_BYTES + step_bytes(memory={"activation_checkpointing": True}))

    error = refused()

    assert "micro_batch" not in error.context
    assert error.context["activation_checkpointing"] is True
    assert error.context["num_workers"] == 2
    assert "set memory.activation_checkpointing, or use 2 workers" in error.message


def test_what_would_not_fit_either_is_not_named(room: Callable[[int], None]) -> None:
    room(RUNTIME_BYTES + step_bytes(num_workers=4))

    error = refused()

    assert "activation_checkpointing" not in error.context
    assert error.context["num_workers"] == 4


def test_where_nothing_fits_that_is_said(room: Callable[[int], None]) -> None:
    room(1)
    assert "nothing short of a smaller batch_size" in refused().message


def test_a_run_is_refused_before_it_starts(tmp_path: Path, datasets_dir: Path, room: Callable[[int], None]) -> None:
    room(1)
    context = trial_context(tmp_path, datasets_dir)
    with pytest.raises(BatchTooLarge):
        train(a_spec(data={"dataset": "shapes", "image_size": 16}), TrialContext.model_validate(context), Team())
    assert not list(Path(context["storage"]).rglob("metrics/*"))


def test_a_resume_goes_on_where_a_killed_start_may_still_hold_the_memory(
    tmp_path: Path, datasets_dir: Path, room: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    context = TrialContext.model_validate(trial_context(tmp_path, datasets_dir))
    spec = a_spec(data={"dataset": "shapes", "image_size": 16})
    open_storage(context.storage).write(context.key("checkpoints/state-0000000001-00000001.safetensors"), b"")
    room(1)

    Run(spec, context, Team(), scribe=None, on_epoch=None)

    assert "goes on from its checkpoint" in caplog.text


@pytest.mark.slow  # two processes
def test_all_ranks_refuse_what_one_has_no_room_for_and_share_a_machine(tmp_path: Path) -> None:
    run_team(2, write_available, str(tmp_path))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told == [GB // 2, GB // 2]


def write_available(team: Team, folder: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_memory_bytes", lambda _: (team.rank + 1) * GB)
        Path(folder, f"{team.rank}.json").write_text(json.dumps(memory._least_available_bytes(team)))

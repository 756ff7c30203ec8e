"""The number of workers, a crash and a resize change how fast a run is, and nothing else.

Whole runs through the loop itself, in gloo processes: data, views, batch norm in encoder and head,
loss, LARS, schedule, checkpoints.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from tests.harness.teams import run_team, train_trial, train_until_killed, trial_context
from tests.harness.trajectories import largest_difference, outcome, starts
from trainer.team import Team

pytestmark = pytest.mark.slow

SPEC: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "projection_head": {"dim": 16},
    "batch_size": 48,
    "epochs": 5,
    "optim": {"warmup_epochs": 1},
    "evaluation": {"linear_probe": False, "knn_every_epochs": 0},
}
STEPS = 20  # 216 images to pretrain on, 4 batches of 48 an epoch


def run(folder: Path, datasets: Path, *, workers: int, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    run_team(workers, train_trial, SPEC | changes, trial_context(folder, datasets))
    return outcome(trial_context(folder, datasets), steps=STEPS)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute as in the processes of a team; more threads add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, datasets_dir: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return run(tmp_path_factory.mktemp("w1"), datasets_dir, workers=1, precision="float64")


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, datasets_dir: Path
) -> tuple[list[float], dict[str, torch.Tensor]]:
    return run(tmp_path_factory.mktemp("unbroken"), datasets_dir, workers=1, precision="float32")


@pytest.mark.parametrize("workers", [2, 4])
def test_in_float64_any_number_of_workers_computes_the_same_run(
    tmp_path: Path, datasets_dir: Path, alone: tuple[list[float], dict[str, torch.Tensor]], workers: int
) -> None:
    losses, tensors = run(tmp_path / "w", datasets_dir, workers=workers, precision="float64")
    assert max(abs(a - b) for a, b in zip(losses, alone[0], strict=True)) <= 1e-9
    assert largest_difference(tensors, alone[1]) <= 1e-9


def train_traced(team: Team, spec: dict[str, Any], context: dict[str, Any]) -> None:
    compile_ = torch.compile
    with pytest.MonkeyPatch.context() as patch:  # compiled, but for the C++ that would be written of it
        patch.setattr(torch, "compile", lambda function: compile_(function, backend="aot_eager"))
        train_trial(team, spec, context)


def test_compiled_steps_of_two_workers_compute_the_same_run(
    tmp_path: Path, datasets_dir: Path, alone: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    context = trial_context(tmp_path / "w", datasets_dir)
    run_team(2, train_traced, SPEC | {"precision": "float64", "compile": True}, context)
    losses, tensors = outcome(context, steps=STEPS)
    assert max(abs(a - b) for a, b in zip(losses, alone[0], strict=True)) <= 1e-9
    assert largest_difference(tensors, alone[1]) <= 1e-9


def test_in_float32_the_first_steps_agree(
    tmp_path: Path, datasets_dir: Path, unbroken: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    one, _ = unbroken
    two, _ = run(tmp_path / "w2", datasets_dir, workers=2, precision="float32")
    assert max(abs(a - b) for a, b in zip(one[:3], two[:3], strict=True)) <= 1e-5


@pytest.mark.parametrize(("kill_after_step", "is_torn"), [(7, False), (14, True)])
def test_a_run_killed_at_a_step_and_resumed_is_bit_identical(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    datasets_dir: Path,
    unbroken: tuple[list[float], dict[str, torch.Tensor]],
    kill_after_step: int,
    is_torn: bool,  # noqa: FBT001 - a case
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole_losses, whole = unbroken
    folder, spec = tmp_path / "killed", SPEC | {"precision": "float32"}
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_team(1, train_until_killed, spec, trial_context(folder, datasets_dir), kill_after_step)
    if is_torn:
        newest = json.loads(max(folder.rglob("manifest-*.json")).read_bytes())
        blob = folder / "storage" / newest["blob"]
        blob.write_bytes(blob.read_bytes()[:-1])
    with one_thread():
        train_trial(Team(), spec, trial_context(folder, datasets_dir, attempt=2))
    context = trial_context(folder, datasets_dir)
    losses, tensors = outcome(context, steps=STEPS)
    assert losses == whole_losses
    assert largest_difference(tensors, whole) == 0
    first, second = starts(context)
    assert first == 0
    assert second in (range(10, 13) if is_torn else (5, 6))  # in the middle of an epoch of 4
    assert ("falling back to the one before" in caplog.text) == is_torn


def test_a_team_killed_twice_at_random_steps_is_bit_identical(tmp_path: Path, datasets_dir: Path) -> None:
    """Three ranks, of which any is killed: with two, a sum has but one order."""
    spec = SPEC | {"precision": "float32"}
    whole_losses, whole = run(tmp_path / "whole", datasets_dir, workers=3, precision="float32")
    folder = tmp_path / "killed"
    chance = random.Random(seed := random.randrange(1000))
    kills = [(chance.choice(steps), chance.randrange(3)) for steps in (range(6, 11), range(13, 20))]
    for attempt, killed in enumerate(kills, start=1):
        with pytest.raises(ProcessException):
            run_team(3, train_until_killed, spec, trial_context(folder, datasets_dir, attempt=attempt), *killed)
    run_team(3, train_trial, spec, trial_context(folder, datasets_dir, attempt=3))
    context = trial_context(folder, datasets_dir)
    losses, tensors = outcome(context, steps=STEPS)
    assert losses == whole_losses, f"killed as seed {seed} has it"
    assert largest_difference(tensors, whole) == 0, f"killed as seed {seed} has it"
    first, *later = starts(context)
    assert first == 0
    # a checkpoint follows each step; that of the last one or two may not have been there yet
    assert all(step - 3 <= start <= step for (step, _), start in zip(kills, later, strict=True)), (kills, later)


def test_a_run_killed_on_two_workers_resumes_on_one(
    tmp_path: Path, datasets_dir: Path, alone: tuple[list[float], dict[str, torch.Tensor]]
) -> None:
    folder = tmp_path / "resized"
    spec = SPEC | {"precision": "float64"}
    with pytest.raises(ProcessException):
        run_team(2, train_until_killed, spec, trial_context(folder, datasets_dir), 6)
    run_team(1, train_trial, spec, trial_context(folder, datasets_dir, attempt=2))
    losses, tensors = outcome(trial_context(folder, datasets_dir), steps=STEPS)
    assert max(abs(a - b) for a, b in zip(losses, alone[0], strict=True)) <= 1e-9
    assert largest_difference(tensors, alone[1]) <= 1e-9
    assert starts(trial_context(folder, datasets_dir))[1:] in ([4], [5])

"""An experiment keeps the precision it began in, whatever the processors of later nodes compute in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing.spawn import ProcessExitedException

import trainer.precision
from tests.harness.teams import run_team, train_trial, train_until_killed, trial_context
from tests.harness.trajectories import largest_difference, outcome
from trainer.agreed_precision import agreed_precision
from trainer.context import ParentTrial, TrialContext
from trainer.storage import open_storage
from trainer.team import Team

SPEC: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "projection_head": {"dim": 16},
    "batch_size": 48,
    "epochs": 2,
    "evaluation": {"linear_probe": False, "knn_every_epochs": 0},
}
STEPS = 8


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return what starts an experiment on one node, with bfloat16 units or without, and tells its precision."""

    def start(*, has_units: bool, asked: Any = "auto", **changes: Any) -> str:
        monkeypatch.setattr(trainer.precision, "_has_bfloat16", lambda _: has_units)
        context = TrialContext.model_validate(trial_context(tmp_path, tmp_path)).model_copy(update=changes)
        return agreed_precision(asked, open_storage(context.storage), context, Team()).name

    return start


@pytest.mark.parametrize(("has_units", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_the_first_start_decides_for_all_later_ones(
    start: Callable[..., str],
    has_units: bool,  # noqa: FBT001 - a case
    expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert start(has_units=has_units) == expected
    assert not caplog.records
    assert start(has_units=not has_units, attempt=2) == expected
    assert f"computes in {expected}, as this experiment began" in caplog.text
    assert start(has_units=not has_units, trial_id="t0001") == expected


def test_what_the_spec_asks_for_needs_no_agreement(start: Callable[..., str]) -> None:
    assert start(has_units=True) == "bfloat16"
    assert start(has_units=True, asked="float64") == "float64"
    assert start(has_units=False, asked="bfloat16", experiment_id="exp_2") == "bfloat16"


def test_a_continuation_is_held_to_its_parents_precision_and_a_clone_is_not(start: Callable[..., str]) -> None:
    parent = ParentTrial(experiment_id="exp_1", trial_id="t0000")
    start(has_units=True)
    assert start(has_units=False, experiment_id="exp_2", parent=parent) == "bfloat16"
    assert start(has_units=False, experiment_id="exp_3") == "float32"
    never_started = ParentTrial(experiment_id="exp_9", trial_id="t0000")
    assert start(has_units=False, experiment_id="exp_4", parent=never_started) == "float32"


def agree_by_rank(team: Team, context: dict[str, Any], who_has_units: list[bool], result: str) -> None:
    has_units = who_has_units[team.rank]
    trainer.precision._has_bfloat16 = lambda device: has_units  # noqa: ARG005 - mypy minds the name
    trial = TrialContext.model_validate(context)
    precision = agreed_precision("auto", open_storage(trial.storage), trial, team)
    Path(f"{result}-{team.rank}").write_text(precision.name)


@pytest.mark.parametrize("who_has_units", [[True, False], [False, True]])
def test_ranks_that_differ_take_what_all_have(tmp_path: Path, who_has_units: list[bool]) -> None:
    result = str(tmp_path / "precision")
    run_team(2, agree_by_rank, trial_context(tmp_path, tmp_path), who_has_units, result)
    assert [Path(f"{result}-{rank}").read_text() for rank in range(2)] == ["float32", "float32"]


def with_units(team: Team, has_units: Any, body: Callable[..., None], *arguments: Any) -> None:
    trainer.precision._has_bfloat16 = lambda device: has_units  # noqa: ARG005 - likewise
    body(team, *arguments)


@pytest.mark.slow
def test_a_run_killed_where_there_are_units_goes_on_to_the_same_weights_where_there_are_none(
    tmp_path: Path, datasets_dir: Path
) -> None:
    unbroken, moved = (trial_context(tmp_path / name, datasets_dir) for name in ("unbroken", "moved"))
    run_team(1, with_units, True, train_trial, SPEC, unbroken)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_team(1, with_units, True, train_until_killed, SPEC, moved, 3)
    run_team(1, with_units, False, train_trial, SPEC, moved | {"attempt": 2})
    losses, tensors = outcome(moved, steps=STEPS)
    expected_losses, expected = outcome(unbroken, steps=STEPS)
    assert losses == expected_losses
    assert largest_difference(tensors, expected) == 0
    marker = json.loads(open_storage(moved["storage"]).read("experiments/exp_1/precision.json"))
    assert (marker["precision"], marker["attempt"]) == ("bfloat16", 1)

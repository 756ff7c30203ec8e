"""How a trial ends: what a worker leaves outranks what Ray saw, and the completion marker outranks both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.teams import run_team
from trainer.context import TrialContext
from trainer.errors import DataError, NonFiniteLoss, StorageUnavailable, Superseded, TrainerError
from trainer.fence import take_fence
from trainer.launch import TrialFailed, _ended_trial
from trainer.outcome import final_errors_left, left_outcome
from trainer.storage import open_storage
from trainer.team import Team


def a_context(folder: Path, *, attempt: int = 1) -> TrialContext:
    return TrialContext(
        experiment_id="exp_1",
        experiment_name="n",
        trial_id="t0000",
        attempt=attempt,
        storage=str(folder),
        cache_dir="c",
    )


@pytest.fixture
def context(tmp_path: Path) -> TrialContext:
    return a_context(tmp_path)


def fail(context: TrialContext, error: Exception) -> None:
    with final_errors_left(context):
        raise error


def test_a_final_error_is_left_and_ends_the_worker_quietly(context: TrialContext) -> None:
    fail(context, NonFiniteLoss("nan", step=3, rank=1))

    left = left_outcome(context)

    assert isinstance(left, NonFiniteLoss)
    assert left.context == {"step": 3, "rank": 1}


def test_of_several_ranks_the_first_error_stays(context: TrialContext) -> None:
    fail(context, DataError("the cause"))
    fail(context, NonFiniteLoss("what came of it"))
    assert isinstance(left_outcome(context), DataError)


@pytest.mark.parametrize(
    "error",
    [StorageUnavailable("away"), Superseded("late"), RuntimeError("peer closed")],
    ids=str,
)
def test_what_another_start_could_mend_is_raised_and_nothing_left(context: TrialContext, error: Exception) -> None:
    with pytest.raises(type(error)):
        fail(context, error)
    assert left_outcome(context) is None


def test_a_rank_that_fails_because_of_anothers_final_error_ends_quietly(context: TrialContext) -> None:
    fail(context, DataError("bad image"))
    fail(context, RuntimeError("Connection closed by peer"))
    assert isinstance(left_outcome(context), DataError)


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_team_of_which_one_rank_has_a_final_error_ends_quietly_as_a_whole(
    context: TrialContext, failing_rank: int
) -> None:
    run_team(2, end_or_wait, context, failing_rank)  # raises what a rank raises
    assert isinstance(left_outcome(context), DataError)


def end_or_wait(team: Team, context: TrialContext, failing_rank: int) -> None:
    with final_errors_left(context):
        if team.rank == failing_rank:
            raise DataError("only here")
        import torch
        import torch.distributed as dist

        dist.broadcast(torch.zeros(1), group_src=failing_rank, group=team.group)


# --- the driver -----------------------------------------------------------------------------------


def test_what_was_left_outranks_what_ray_saw(context: TrialContext) -> None:
    fail(context, NonFiniteLoss("nan"))
    with pytest.raises(NonFiniteLoss) as caught:
        _ended_trial(context, TrialFailed("the workers failed: Connection closed by peer"))
    assert isinstance(caught.value.__cause__, TrialFailed)


def test_the_completion_marker_outranks_all(context: TrialContext) -> None:
    fail(context, NonFiniteLoss("of a worker that is behind"))
    marker = {"state": "succeeded", "step": 7, "attempt": 1}
    open_storage(context.storage).write(context.key("complete.json"), json.dumps(marker).encode())
    assert _ended_trial(context, TrialFailed("the workers failed")).step == 7


def test_a_driver_whose_trial_a_later_attempt_owns_says_so(context: TrialContext, tmp_path: Path) -> None:
    take_fence(open_storage(str(tmp_path)), a_context(tmp_path, attempt=2))
    with pytest.raises(Superseded):
        _ended_trial(context, TrialFailed("the workers failed"))


@pytest.mark.parametrize("failure", [TrialFailed("the workers failed"), None])
def test_without_anything_left_it_may_be_tried_again(context: TrialContext, failure: TrialFailed | None) -> None:
    with pytest.raises(TrainerError) as caught:
        _ended_trial(context, failure)
    assert caught.value.retryable

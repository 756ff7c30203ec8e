"""How an attempt that has ended is judged."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dispatch.attempt_markers import Left
from service.dispatch.settlement import Ending, backoff_s, judge, run_status, way_to
from service.experiment import TERMINAL, TRANSITIONS, State
from service.ports import JobObservation, JobStatus
from tests.fakes.records import record

DIED = JobObservation(status=JobStatus.FAILED, message="exit code 137")
COMPLETE = {"state": "succeeded", "attempt": 1}
FINAL = {"code": "data_invalid", "message": "no images", "retryable": False, "context": {"file": "a.npz"}}
AGAIN = {"code": "workers_failed", "message": "OOM", "retryable": True}


def judged(
    state: State = State.RUNNING, *, is_over_time: bool = False, observation: JobObservation = DIED, **given_: Any
) -> Ending:
    left = Left(**{name: given_.pop(name) for name in ("complete", "stopped", "failure") if name in given_})
    return judge(record("e", state=state, **given_), left, observation, is_over_time=is_over_time)


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING, State.CANCELLING])
def test_a_completion_marker_is_the_truth_whatever_was_asked_and_whatever_ray_says(state: State) -> None:
    ending = judged(state, complete=COMPLETE, failure=FINAL, stopped={"kind": "cancel"}, is_over_time=True)
    assert ending == Ending(target=State.SUCCEEDED)


def test_a_completion_marker_of_a_failure_gives_its_reason() -> None:
    reason = {"code": "all_trials_failed", "message": "8 of 8"}
    assert judged(complete={"state": "failed", "reason": reason}) == Ending(target=State.FAILED, reason=reason)


def test_a_success_that_a_limit_cut_short_says_so() -> None:
    reason = {"code": "limit_reached", "message": "limits.max_images = 10 was reached"}
    complete = {**COMPLETE, "reason": reason}
    assert judged(complete=complete) == Ending(target=State.SUCCEEDED, reason=reason)


def test_a_cancel_is_obeyed_however_the_job_ended() -> None:
    for left in ({}, {"stopped": {"kind": "pause"}}, {"failure": FINAL}):
        assert judged(State.CANCELLING, **left).target is State.CANCELLED


def test_a_pause_is_obeyed_unless_the_experiment_cannot_go_on() -> None:
    assert judged(State.PAUSING, stopped={"kind": "pause"}).target is State.PAUSED
    assert judged(State.PAUSING).target is State.PAUSED
    assert judged(State.PAUSING, failure=AGAIN).target is State.PAUSED
    assert judged(State.PAUSING, failure=FINAL).target is State.FAILED


def test_a_final_failure_keeps_code_message_and_context() -> None:
    reason = {"code": "data_invalid", "message": "no images", "context": {"file": "a.npz"}}
    assert judged(failure=FINAL) == Ending(target=State.FAILED, reason=reason)


def test_an_attempt_that_its_own_twin_superseded_is_no_final_failure() -> None:
    superseded = {"code": "superseded", "message": "a newer start", "retryable": False}
    assert judged(failure=superseded).target is State.RECOVERING


def test_a_job_that_obeyed_a_wish_whose_state_was_lost_is_where_the_wish_led() -> None:
    assert judged(stopped={"kind": "pause"}).target is State.PAUSED
    assert judged(stopped={"kind": "cancel"}).target is State.CANCELLED


def test_time_that_is_used_up_ends_it_and_says_how_to_get_more() -> None:
    ending = judged(is_over_time=True, stopped={"kind": "cancel"}, wall_time_s=60)
    assert ending.reason is not None
    assert (ending.target, ending.reason["code"]) == (State.FAILED, "wall_time_exceeded")
    assert "limits.wall_time_s = 60" in ending.reason["message"]


def test_a_death_without_a_word_is_counted_and_tried_again() -> None:
    ending = judged(failures=1, max_attempts=3)
    assert ending.reason is not None
    assert (ending.target, ending.failures, ending.reason["code"]) == (State.RECOVERING, 2, "job_died")
    assert "exit code 137" in ending.reason["message"]


def test_an_exit_of_zero_without_a_marker_is_a_death_too() -> None:
    assert judged(observation=JobObservation(status=JobStatus.SUCCEEDED)).target is State.RECOVERING


def test_the_last_attempts_cause_is_told() -> None:
    ending = judged(failures=2, max_attempts=3, failure=AGAIN)
    assert ending.reason is not None
    assert (ending.target, ending.failures, ending.reason["code"]) == (State.FAILED, 3, "attempts_exhausted")
    assert ending.reason["cause"] == {"code": "workers_failed", "message": "OOM"}


@given(st.integers(1, 10_000))
def test_the_backoff_grows_and_is_bounded(failures: int) -> None:
    assert 2 <= backoff_s(failures) <= backoff_s(failures + 1) <= 300


@pytest.mark.parametrize("source", [State.STARTING, State.RUNNING, State.RECOVERING])
@pytest.mark.parametrize("target", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.PAUSED, State.RECOVERING])
def test_every_ending_is_reached_by_moves_of_the_table(source: State, target: State) -> None:
    way = (source, *way_to(source, target))
    assert way[-1] is target
    assert len(way) > 1
    assert all(after in TRANSITIONS[before] for before, after in pairwise(way))
    assert State.QUEUED not in way


def test_there_is_no_way_out_of_an_end() -> None:
    with pytest.raises(ValueError, match="no way"):
        way_to(State.SUCCEEDED, State.FAILED)


def test_every_end_has_a_word_of_mlflow_and_nothing_else_has() -> None:
    assert {state: run_status(state) for state in TERMINAL} == {
        State.SUCCEEDED: "FINISHED",
        State.FAILED: "FAILED",
        State.CANCELLED: "KILLED",
    }
    with pytest.raises(ValueError, match="no end"):
        run_status(State.RUNNING)

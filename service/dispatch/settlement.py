"""How an attempt that has ended is judged: a pure function of its markers and of Ray's word.

The job's own markers outrank Ray, which calls a job failed when only its head was replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.dispatch.attempt_markers import Left, RunStatus
from service.experiment import TERMINAL, State, can_move
from service.ports import ExperimentRecord, JobObservation, JobStatus, JsonObject

__all__ = ["Ending", "backoff_s", "judge", "over_time", "run_status", "way_to"]

BACKOFF_FIRST_S: Final = 2.0
BACKOFF_MOST_S: Final = 300.0
LOST: Final = "job_lost"
LOST_MOST: Final = 20  # heads that may go under one experiment before it counts: each restart of a stack is one

_ON_THE_WAY: Final = (State.RUNNING, State.PAUSING, State.CANCELLING)  # states a settlement may pass through


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Where the experiment goes from here, and why."""

    target: State
    reason: JsonObject | None = None
    failures: int | None = None  # the new count, where it changes


def judge(record: ExperimentRecord, left: Left, observation: JobObservation, *, is_over_time: bool) -> Ending:
    """Return how the present attempt ended; it runs no more, or said itself that it is done.

    A completion marker is the truth whatever was asked meanwhile: it finished first. Else what the
    owner asked for holds (a cancel before a pause), then the wall time, then what went wrong.
    """
    if left.complete is not None:
        return _completed(left.complete)
    if record.state is State.CANCELLING:
        return Ending(target=State.CANCELLED)
    if left.failure is not None and left.has_final_failure and left.stopped is None:
        return Ending(target=State.FAILED, reason=_reason_of(left.failure))
    if record.state is State.PAUSING:
        return Ending(target=State.PAUSED)
    if is_over_time:
        return over_time(record)
    return _after_failure(record, left, observation) if left.stopped is None else _stopped(left.stopped)


def _completed(marker: JsonObject) -> Ending:
    if marker.get("state") == State.SUCCEEDED:
        limit = marker.get("reason")  # that ended it before all of its trials
        return Ending(target=State.SUCCEEDED, reason=_reason_of(limit) if limit else None)
    return Ending(target=State.FAILED, reason=_reason_of(marker.get("reason")))


def _stopped(marker: JsonObject) -> Ending:
    """Return what the job obeyed; the wish came from someone whose move of the state was lost."""
    return Ending(target=State.PAUSED if marker.get("kind") == "pause" else State.CANCELLED)


def over_time(record: ExperimentRecord) -> Ending:
    """Return the ending of an experiment that used up its wall time."""
    message = f"it ran for longer than limits.wall_time_s = {record.wall_time_s}; raise it, or ask for less"
    return Ending(target=State.FAILED, reason={"code": "wall_time_exceeded", "message": message})


def _after_failure(record: ExperimentRecord, left: Left, observation: JobObservation) -> Ending:
    """Return another attempt, or the end of attempts: nothing says that the experiment is at fault."""
    cause = _reason_of(left.failure) if left.failure is not None else _infrastructure(observation)
    if cause["code"] == LOST and record.attempt - record.failures <= LOST_MOST:
        return Ending(target=State.RECOVERING, reason=cause)  # a head that went is no fault of the experiment's
    failures = record.failures + 1
    if failures < record.max_attempts:
        return Ending(target=State.RECOVERING, reason=cause, failures=failures)
    message = f"{failures} attempts failed (limits.max_attempts = {record.max_attempts}); the last: {cause['message']}"
    reason = {"code": "attempts_exhausted", "message": message, "cause": cause}
    return Ending(target=State.FAILED, reason=reason, failures=failures)


def _infrastructure(observation: JobObservation) -> JsonObject:
    if observation.status is JobStatus.MISSING:
        return {"code": LOST, "message": "Ray no longer knows the job: its head was replaced or restarted"}
    words = f": {observation.message}" if observation.message else ""
    message = f"the job ended without a word (Ray says {observation.status}){words}"
    return {"code": "job_died", "message": message}


def _reason_of(marker: JsonObject | None) -> JsonObject:
    """Return code and message of a marker, and its context where there is one."""
    marker = marker or {}
    reason = {
        "code": str(marker.get("code", "training_failed")),
        "message": str(marker.get("message", "the job said no more")),
    }
    return reason | ({"context": marker["context"]} if marker.get("context") else {})


def backoff_s(failures: int) -> float:
    """Return how long to wait before the next attempt: twice as long after each failure, up to a bound."""
    return float(min(BACKOFF_FIRST_S * 2 ** min(failures - 1, 16), BACKOFF_MOST_S))


def way_to(source: State, target: State) -> tuple[State, ...]:
    """Return the moves of the table that lead from `source` to `target`, the shortest way; at least one."""
    ways: list[tuple[State, ...]] = [(source,)]
    for way in ways:
        if can_move(way[-1], target):
            return (*way[1:], target)
        ways += [(*way, state) for state in _ON_THE_WAY if can_move(way[-1], state) and state not in way]
    raise ValueError(f"no way from {source} to {target}")


def run_status(state: State) -> RunStatus:
    """Return what MLflow calls the end of an experiment in this terminal state."""
    if state not in TERMINAL:
        raise ValueError(f"{state} is no end")
    ends: dict[State, RunStatus] = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED"}
    return ends.get(state, "KILLED")

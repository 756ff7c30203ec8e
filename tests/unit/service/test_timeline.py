"""Timelines of attempts, told from state events and the marks of drivers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from service.ports import Event
from service.schemas import AttemptTimeline
from service.views.timeline import attempt_timelines

BEGAN = datetime(2030, 1, 1, tzinfo=UTC)


def at(second: float) -> datetime:
    return BEGAN + timedelta(seconds=second)


def told(*story: tuple[float, str, int]) -> list[Event]:
    return [
        Event(sequence=place, experiment_id="e", type="state", data={"state": state, "attempt": attempt}, at=at(second))
        for place, (second, state, attempt) in enumerate(story, start=1)
    ]


def mark(second: float, stage: str) -> dict[str, Any]:
    return {"stage": stage, "at": at(second).isoformat()}


def shown(timelines: list[AttemptTimeline]) -> dict[int, list[tuple[str, float | None]]]:
    return {each.attempt: [(phase.name, phase.duration_s) for phase in each.phases] for each in timelines}


def test_an_attempt_is_numbered_as_its_events_say_however_often_it_was_queued() -> None:
    story = told((0, "queued", 0), (1, "paused", 0), (10, "queued", 0), (12, "starting", 1), (15, "running", 1))
    timelines = attempt_timelines(story, {1: [mark(14, "train"), mark(16, "first_step")]})

    assert shown(timelines) == {
        1: [("queue", 1.0), ("queue", 2.0), ("start", 2.0), ("first_step", 2.0), ("train", None)]
    }


def test_a_recovery_belongs_to_the_attempt_that_it_starts() -> None:
    story = told(
        (0, "queued", 0),
        (1, "starting", 1),
        (2, "running", 1),
        (10, "recovering", 2),
        (13, "running", 2),
        (20, "succeeded", 2),
    )
    timelines = attempt_timelines(story, {1: [mark(3, "train")], 2: [mark(14, "train"), mark(19, "evaluate")]})

    assert shown(timelines) == {
        1: [("queue", 1.0), ("start", 2.0), ("first_step", 7.0)],
        2: [("recover", 4.0), ("first_step", 5.0), ("evaluate", 1.0)],
    }


def test_a_resumed_experiment_waits_for_its_next_attempt() -> None:
    story = told(
        (0, "queued", 0),
        (1, "starting", 1),
        (2, "running", 1),
        (5, "pausing", 1),
        (6, "paused", 1),
        (60, "queued", 1),
        (61, "starting", 2),
    )

    assert shown(attempt_timelines(story, {})) == {
        1: [("queue", 1.0), ("start", 5.0)],
        2: [("queue", 1.0), ("start", None)],
    }


def test_clocks_that_disagree_give_no_negative_duration() -> None:
    story = told((0, "queued", 0), (10, "starting", 1))

    assert shown(attempt_timelines(story, {1: [mark(9, "train")]}))[1][1:] == [("start", 0.0), ("first_step", None)]

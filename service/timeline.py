"""When each part of each attempt began and how long it took: queue, start, first step, train, evaluate, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from service.experiment import TERMINAL, State
from service.ports import Event
from service.schemas import AttemptTimeline, TimelinePhase

__all__ = ["attempt_timelines"]

# Between the driver's marks `train` and `first_step` lies the wait for the first step.
_PHASE_OF_MARK: Final = {"train": "first_step", "first_step": "train"}
_PHASE_OF_STATE: Final = {State.QUEUED: "queue", State.STARTING: "start", State.RECOVERING: "recover"}
_ENDS: Final = TERMINAL | {State.PAUSED, State.QUEUED, State.RECOVERING}


def attempt_timelines(
    events: Sequence[Event], marks: Mapping[int, Sequence[Mapping[str, str]]]
) -> list[AttemptTimeline]:
    """Return one timeline per attempt, of the state events and the marks that each attempt's driver left.

    A phase lasts until the next begins; the last one until the attempt ended, or still.
    """
    timelines: list[AttemptTimeline] = []
    phases: list[tuple[str, datetime]] = []
    for event in (event for event in events if event.type == "state"):
        state = State(event.data["state"])
        if state in _ENDS and phases:
            timelines.append(_timeline(len(timelines) + 1, phases, marks, ended_at=event.at))
            phases = []
        if state in _PHASE_OF_STATE:
            phases.append((_PHASE_OF_STATE[state], event.at))
    if phases:
        timelines.append(_timeline(len(timelines) + 1, phases, marks, ended_at=None))
    return timelines


def _timeline(
    attempt: int,
    phases: Sequence[tuple[str, datetime]],
    marks: Mapping[int, Sequence[Mapping[str, Any]]],
    *,
    ended_at: datetime | None,
) -> AttemptTimeline:
    marked = [
        (_PHASE_OF_MARK.get(mark["stage"], mark["stage"]), datetime.fromisoformat(mark["at"]))
        for mark in marks.get(attempt, ())
    ]
    begun = [*phases, *marked]
    ends = [*(at for _, at in begun[1:]), ended_at]
    return AttemptTimeline(
        attempt=attempt,
        phases=[
            TimelinePhase(name=name, began_at=at, duration_s=max(0.0, (end - at).total_seconds()) if end else None)
            for (name, at), end in zip(begun, ends, strict=True)
        ],
    )

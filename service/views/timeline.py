"""When each part of each attempt began and how long it took: queue, start, first step, train, evaluate, export."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from service.experiment import TERMINAL, State
from service.ports import Event
from service.schemas import AttemptTimeline, TimelinePhase

__all__ = ["attempt_timelines"]

# Between the driver's marks `train` and `first_step` lies the wait for the first step.
_PHASE_OF_MARK: Final = {"train": "first_step", "first_step": "train"}
_PHASE_OF_STATE: Final = {State.QUEUED: "queue", State.STARTING: "start", State.RECOVERING: "recover"}
_ENDS: Final = TERMINAL | {State.PAUSED, *_PHASE_OF_STATE}


@dataclass
class _Phase:
    name: str
    began_at: datetime
    ended_at: datetime | None = None


def attempt_timelines(
    events: Sequence[Event], marks: Mapping[int, Sequence[Mapping[str, str]]]
) -> list[AttemptTimeline]:
    """Return one timeline per attempt, of the state events and the marks that each attempt's driver left.

    A wait in the queue belongs to the attempt that it leads to. The last phase lasts until its
    attempt ended, or still.
    """
    phases: dict[int, list[_Phase]] = defaultdict(list)
    last: _Phase | None = None
    for event in (event for event in events if event.type == "state"):
        state = State(event.data["state"])
        if last is not None and state in _ENDS:
            last.ended_at = event.at
            last = None
        if state in _PHASE_OF_STATE:
            last = _Phase(_PHASE_OF_STATE[state], event.at)
            phases[event.data["attempt"] + (state is State.QUEUED)].append(last)
    return [_timeline(attempt, phases[attempt], marks.get(attempt, ())) for attempt in sorted(phases)]


def _timeline(attempt: int, phases: Sequence[_Phase], marks: Sequence[Mapping[str, Any]]) -> AttemptTimeline:
    """Return the timeline of an attempt: what its driver marked divides its last phase."""
    *before, last = phases
    marked = [(_PHASE_OF_MARK.get(mark["stage"], mark["stage"]), datetime.fromisoformat(mark["at"])) for mark in marks]
    begun = [(last.name, last.began_at), *marked]
    ends = [*(at for _, at in marked), last.ended_at]
    divided = [_Phase(name, at, end) for (name, at), end in zip(begun, ends, strict=True)]
    return AttemptTimeline(attempt=attempt, phases=[_view(phase) for phase in (*before, *divided)])


def _view(phase: _Phase) -> TimelinePhase:
    ended_at, began_at = phase.ended_at, phase.began_at
    duration_s = max(0.0, (ended_at - began_at).total_seconds()) if ended_at else None  # two clocks may disagree
    return TimelinePhase(name=phase.name, began_at=began_at, duration_s=duration_s)

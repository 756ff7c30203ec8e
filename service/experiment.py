"""The life of an experiment: its states and the moves between them, as data.

    queued -> starting | paused | cancelled | failed
    starting -> running | queued (backoff) | cancelling | failed
    running -> pausing | cancelling | recovering | succeeded | failed
    recovering -> running | cancelling | failed
    pausing -> paused | cancelling | succeeded | failed
    paused -> queued | cancelled
    cancelling -> cancelled | succeeded (it finished first) | failed

Everything else about states is computed from this table; it is pure and has no other home.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = [
    "ACTIVE",
    "NON_TERMINAL",
    "TERMINAL",
    "TRANSITIONS",
    "State",
    "TrialState",
    "Verb",
    "allowed_verbs",
    "can_move",
    "submission_id",
    "verb_target",
]


class State(StrEnum):
    """Where an experiment stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TrialState(StrEnum):
    """Where one trial of an experiment stands."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED_EARLY = "stopped_early"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Verb(StrEnum):
    """What a client may ask of an experiment."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED, State.FAILED}),
        State.STARTING: frozenset({State.RUNNING, State.QUEUED, State.CANCELLING, State.FAILED}),
        State.RUNNING: frozenset({State.PAUSING, State.CANCELLING, State.RECOVERING, State.SUCCEEDED, State.FAILED}),
        State.RECOVERING: frozenset({State.RUNNING, State.CANCELLING, State.FAILED}),
        State.PAUSING: frozenset({State.PAUSED, State.CANCELLING, State.SUCCEEDED, State.FAILED}),
        State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
        State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED, State.FAILED}),
        State.SUCCEEDED: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }
)

TERMINAL: Final = frozenset(state for state, targets in TRANSITIONS.items() if not targets)
NON_TERMINAL: Final = frozenset(TRANSITIONS) - TERMINAL
# Active: a job of it may exist on the cluster, or will without anyone asking again.
ACTIVE: Final = NON_TERMINAL - {State.PAUSED}

# What a verb leads to, from the states where it is no mere repetition.
_VERB_TARGETS: Final[Mapping[Verb, Mapping[State, State]]] = {
    Verb.CANCEL: {
        State.QUEUED: State.CANCELLED,
        State.PAUSED: State.CANCELLED,
        State.STARTING: State.CANCELLING,
        State.RUNNING: State.CANCELLING,
        State.RECOVERING: State.CANCELLING,
        State.PAUSING: State.CANCELLING,
    },
    Verb.PAUSE: {State.QUEUED: State.PAUSED, State.RUNNING: State.PAUSING},
    Verb.RESUME: {State.PAUSED: State.QUEUED},
}

# States in which a verb has already been obeyed: repeating it changes nothing and is no error.
_VERB_DONE: Final[Mapping[Verb, frozenset[State]]] = {
    Verb.CANCEL: frozenset({State.CANCELLING, State.CANCELLED}),
    Verb.PAUSE: frozenset({State.PAUSING, State.PAUSED}),
    Verb.RESUME: frozenset({State.QUEUED, State.STARTING, State.RUNNING, State.RECOVERING}),
}


def can_move(source: State, target: State) -> bool:
    """Return whether the table has this move."""
    return target in TRANSITIONS[source]


def verb_target(verb: Verb, state: State) -> State | None:
    """Return where `verb` leads from `state`: `state` itself if it is obeyed already, None if illegal."""
    if state in _VERB_DONE[verb]:
        return state
    return _VERB_TARGETS[verb].get(state)


def allowed_verbs(state: State) -> list[Verb]:
    """Return the verbs that would change something in `state`, for the body of a 409."""
    return [verb for verb in Verb if state in _VERB_TARGETS[verb]]


def submission_id(experiment_id: str, attempt: int) -> str:
    """Return the Ray submission id of an attempt: deterministic, so a repeated submit collides."""
    return f"{experiment_id}-a{attempt}"

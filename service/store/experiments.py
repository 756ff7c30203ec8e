"""Experiments: created, changed, moved between states, claimed and removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from service.errors import IllegalTransition, StaleState, StaleVersion
from service.experiment import ACTIVE, TERMINAL, State, can_move
from service.ports import ExperimentRecord, JsonObject, NewExperiment
from service.store import events, rows
from service.store.tables import experiment_labels, experiments

__all__ = [
    "QUEUE_WINDOW",
    "add",
    "change",
    "claim_due",
    "claimed",
    "count_by_state",
    "head_of_queue",
    "move",
    "remove",
    "set_condition",
]

QUEUE_WINDOW: Final = 64  # experiments of one owner: more than any step starts
QUEUE_MOST: Final = 2048  # of all owners

# Built once, with what each needs as parameters: to put a statement together costs more than to run it.
_ADD: Final = insert(experiments).returning(experiments)
_ADD_LABELS: Final = insert(experiment_labels)
_ASKED: Final = [field.name for field in fields(NewExperiment)]
_REMOVABLE: Final = TERMINAL | {State.PAUSED}


def add(connection: Connection, new: NewExperiment, *, at: datetime) -> ExperimentRecord:
    """Store `new` as queued, with its first event."""
    values = {name: getattr(new, name) for name in _ASKED}
    values |= {"state": State.QUEUED, "conditions": [], "attempt": 0, "failures": 0, "version": 1}
    values |= {"created_at": at, "updated_at": at}
    row = connection.execute(_ADD, values).one()
    added = rows.record(row)
    _write_labels(connection, added, new.labels)
    events.append(connection, new.id, "state", _story(State.QUEUED), at=at)
    return added


def change(
    connection: Connection,
    experiment_id: str,
    *,
    expected_version: int | None,
    labels: Mapping[str, str] | None,
    priority: int | None,
    at: datetime,
) -> ExperimentRecord:
    """Change what a client may change; what is the same already changes nothing."""
    stored = rows.get(connection, experiment_id, for_update=True)
    if expected_version not in (None, stored.version):
        raise StaleVersion(
            f"Experiment {experiment_id} is at version {stored.version}, not {expected_version}.",
            version=stored.version,
        )
    changes: dict[str, Any] = {}
    if priority not in (None, stored.priority):
        changes["priority"] = priority
    if labels is not None and dict(labels) != stored.labels:
        changes["labels"] = dict(labels)
        forget = delete(experiment_labels).where(experiment_labels.c.experiment_id == experiment_id)
        connection.execute(forget)
        _write_labels(connection, stored, labels)
    if not changes:
        return stored
    return _write(connection, experiment_id, changes, at=at)


def move(
    connection: Connection,
    experiment_id: str,
    *,
    source: State,
    target: State,
    claim: str | None,
    reason: JsonObject | None,
    attempt: int | None,
    failures: int | None,
    not_before: datetime | None,
    at: datetime,
) -> ExperimentRecord:
    """Move from `source` to `target` and write the event, fenced by state and claim."""
    if not can_move(source, target):
        raise IllegalTransition(f"There is no move from {source} to {target}.", source=source, target=target)
    c = experiments.c
    changes: dict[str, Any] = {"state": target, "reason": reason, "not_before": not_before}
    changes |= {} if attempt is None else {"attempt": attempt}
    changes |= {} if failures is None else {"failures": failures}
    changes |= {"started_at": func.coalesce(c.started_at, at)} if target is State.RUNNING else {}
    changes |= {"finished_at": at} if target in TERMINAL else {}
    fence = [c.id == experiment_id, c.state == source]
    if claim is not None:
        fence.append(or_(c.claim.is_(None), c.claim == claim, c.claimed_until <= at))
    statement = update(experiments).where(*fence).values(**changes, version=c.version + 1, updated_at=at)
    row = connection.execute(statement.returning(experiments)).one_or_none()
    if row is None:
        raise _stale(connection, experiment_id, f"wanted {source} for {target}")
    moved = rows.record(row)
    story = _story(target, previous=source, reason=reason, attempt=moved.attempt)
    events.append(connection, experiment_id, "state", story, at=at)
    return moved


def set_condition(connection: Connection, experiment_id: str, condition: JsonObject, *, at: datetime) -> None:
    """Add or replace the condition of this type; the time alone (`at`) is no change."""
    stored = rows.get(connection, experiment_id, for_update=True)
    conditions = {each["type"]: each for each in stored.conditions}
    if _substance(conditions.get(condition["type"], {})) == _substance(condition):
        return
    conditions[condition["type"]] = condition
    _write(connection, experiment_id, {"conditions": list(conditions.values())}, at=at)
    events.append(connection, experiment_id, "condition", condition, at=at)


def remove(connection: Connection, experiment_id: str) -> None:
    """Remove a terminal or paused experiment; its labels, events and keys go with it."""
    statement = delete(experiments).where(experiments.c.id == experiment_id, experiments.c.state.in_(_REMOVABLE))
    if connection.execute(statement).rowcount == 0:
        raise _stale(connection, experiment_id, "only a paused or ended one can be deleted")


def head_of_queue(connection: Connection) -> Sequence[str]:
    """Return the ids of the first QUEUE_WINDOW queued experiments of each owner, by priority, then age.

    Of more owners than QUEUE_MOST has room for, each keeps its first ones.
    """
    c = experiments.c
    place = func.row_number().over(partition_by=c.owner, order_by=(c.priority.desc(), c.created_at, c.id))
    queue = select(c.id, place.label("place")).where(c.state == State.QUEUED).subquery()
    head = select(queue.c.id).where(queue.c.place <= QUEUE_WINDOW).order_by(queue.c.place, queue.c.id).limit(QUEUE_MOST)
    return connection.scalars(head).all()


def claim_due(connection: Connection, claim: str, *, queued: Sequence[str], now: datetime, lease_s: float) -> None:
    """Claim every active experiment that no other dispatcher holds, of those queued only `queued`.

    What is held for longer than half a lease yet is left as it is: each row that is written anew is
    a page or more in the log, and a step comes twice a second.
    A row that is being written just now is passed over until the next call, never waited for.
    """
    c = experiments.c
    is_mine = and_(c.claim == claim, c.claimed_until <= now + timedelta(seconds=lease_s / 2))
    is_free = or_(c.claim.is_(None), c.claimed_until <= now, is_mine)
    free = select(c.id).where(_is_due(queued), is_free).with_for_update(skip_locked=True, key_share=True)
    until = now + timedelta(seconds=lease_s)
    connection.execute(update(experiments).where(c.id.in_(free)).values(claim=claim, claimed_until=until))


def claimed(
    connection: Connection, claim: str, *, queued: Sequence[str], now: datetime, with_queue_of_others: bool
) -> Sequence[ExperimentRecord]:
    """Return what `claim_due` claimed, and on demand all else of `queued`, by priority, then age."""
    c = experiments.c
    is_mine = and_(c.claim == claim, c.claimed_until >= now)
    is_asked_for = or_(is_mine, c.state == State.QUEUED) if with_queue_of_others else is_mine
    asked_for = select(experiments).where(_is_due(queued), is_asked_for)
    found = rows.read_each(connection, asked_for.order_by(c.priority.desc(), c.created_at, c.id))
    return [each for each in found if each is not None]


def _is_due(queued: Sequence[str]) -> ColumnElement[bool]:
    c = experiments.c
    return or_(c.state.in_(ACTIVE - {State.QUEUED}), and_(c.state == State.QUEUED, c.id.in_(queued)))


def count_by_state(connection: Connection) -> Mapping[State, int]:
    """Return the number in each state, zeros included."""
    statement = select(experiments.c.state, func.count()).group_by(experiments.c.state)
    counted = {row.state: row[1] for row in connection.execute(statement)}
    return {state: counted.get(state, 0) for state in State}


def _write(connection: Connection, experiment_id: str, changes: Mapping[str, Any], *, at: datetime) -> ExperimentRecord:
    statement = (
        update(experiments)
        .where(experiments.c.id == experiment_id)
        .values(**changes, version=experiments.c.version + 1, updated_at=at)
    )
    return rows.record(connection.execute(statement.returning(experiments)).one())


def _write_labels(connection: Connection, of: ExperimentRecord, labels: Mapping[str, str]) -> None:
    if labels:
        beside = {"created_at": of.created_at, "owner": of.owner, "name": of.name, "priority": of.priority}
        marks = [{"experiment_id": of.id, "key": key, "value": value, **beside} for key, value in labels.items()]
        connection.execute(_ADD_LABELS, marks)


def _stale(connection: Connection, experiment_id: str, wanted: str) -> StaleState:
    """Return the error of a fence that did not hold. Raises ExperimentNotFound where nothing is there."""
    stored = rows.get(connection, experiment_id)
    return StaleState(
        f"Experiment {experiment_id} is {stored.state}, held by {stored.claim or 'nobody'}: {wanted}.",
        state=stored.state,
    )


def _story(
    state: State, *, previous: State | None = None, reason: JsonObject | None = None, attempt: int = 0
) -> JsonObject:
    return {"state": state, "previous": previous, "reason": reason, "attempt": attempt}


def _substance(condition: JsonObject) -> JsonObject:
    return {name: value for name, value in condition.items() if name != "at"}

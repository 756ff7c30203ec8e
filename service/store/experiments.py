"""Experiments: created, changed, moved between states, claimed and removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

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
    "count_by_state",
    "head_of_queue",
    "move",
    "remove",
    "set_condition",
]

QUEUE_WINDOW: Final = 64  # experiments of one owner: more than any step starts
QUEUE_MOST: Final = 2048  # of all owners

_ASKED: Final = [field.name for field in fields(NewExperiment)]
_REMOVABLE: Final = TERMINAL | {State.PAUSED}


async def add(connection: AsyncConnection, new: NewExperiment, *, at: datetime) -> ExperimentRecord:
    """Store `new` as queued, with its first event."""
    values = {name: getattr(new, name) for name in _ASKED}
    values |= {"state": State.QUEUED, "conditions": [], "attempt": 0, "failures": 0, "version": 1}
    values |= {"created_at": at, "updated_at": at}
    row = (await connection.execute(insert(experiments).values(values).returning(experiments))).one()
    await _write_labels(connection, new.id, new.labels, created_at=at)
    await events.append(connection, new.id, "state", _story(State.QUEUED), at=at)
    return rows.record(row)


async def change(
    connection: AsyncConnection,
    experiment_id: str,
    *,
    expected_version: int | None,
    labels: Mapping[str, str] | None,
    priority: int | None,
    at: datetime,
) -> ExperimentRecord:
    """Change what a client may change; what is the same already changes nothing."""
    stored = await rows.get(connection, experiment_id, for_update=True)
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
        await connection.execute(forget)
        await _write_labels(connection, experiment_id, labels, created_at=stored.created_at)
    if not changes:
        return stored
    return await _write(connection, experiment_id, changes, at=at)


async def move(
    connection: AsyncConnection,
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
    row = (await connection.execute(statement.returning(experiments))).one_or_none()
    if row is None:
        raise await _stale(connection, experiment_id, f"wanted {source} for {target}")
    moved = rows.record(row)
    story = _story(target, previous=source, reason=reason, attempt=moved.attempt)
    await events.append(connection, experiment_id, "state", story, at=at)
    return moved


async def set_condition(
    connection: AsyncConnection, experiment_id: str, condition: JsonObject, *, at: datetime
) -> None:
    """Add or replace the condition of this type; the time alone (`at`) is no change."""
    stored = await rows.get(connection, experiment_id, for_update=True)
    conditions = {each["type"]: each for each in stored.conditions}
    if _substance(conditions.get(condition["type"], {})) == _substance(condition):
        return
    conditions[condition["type"]] = condition
    await _write(connection, experiment_id, {"conditions": list(conditions.values())}, at=at)
    await events.append(connection, experiment_id, "condition", condition, at=at)


async def remove(connection: AsyncConnection, experiment_id: str) -> None:
    """Remove a terminal or paused experiment; its labels, events and keys go with it."""
    statement = delete(experiments).where(experiments.c.id == experiment_id, experiments.c.state.in_(_REMOVABLE))
    if (await connection.execute(statement)).rowcount == 0:
        raise await _stale(connection, experiment_id, "only a paused or ended one can be deleted")


async def head_of_queue(connection: AsyncConnection) -> Sequence[str]:
    """Return the ids of the first QUEUE_WINDOW queued experiments of each owner, by priority, then age.

    Of more owners than QUEUE_MOST has room for, each keeps its first ones.
    """
    c = experiments.c
    place = func.row_number().over(partition_by=c.owner, order_by=(c.priority.desc(), c.created_at, c.id))
    queue = select(c.id, place.label("place")).where(c.state == State.QUEUED).subquery()
    head = select(queue.c.id).where(queue.c.place <= QUEUE_WINDOW).order_by(queue.c.place, queue.c.id).limit(QUEUE_MOST)
    return (await connection.scalars(head)).all()


async def claim_due(
    connection: AsyncConnection, claim: str, *, queued: Sequence[str], now: datetime, lease_s: float
) -> Sequence[ExperimentRecord]:
    """Claim every active experiment that no other dispatcher holds, of those queued only `queued`.

    A row that is being written just now is passed over until the next call, never waited for.
    """
    c = experiments.c
    until = now + timedelta(seconds=lease_s)
    is_due = or_(c.state.in_(ACTIVE - {State.QUEUED}), and_(c.state == State.QUEUED, c.id.in_(queued)))
    is_free = or_(c.claim.is_(None), c.claim == claim, c.claimed_until <= now)
    free = select(c.id).where(is_due, is_free).with_for_update(skip_locked=True, key_share=True)
    await connection.execute(update(experiments).where(c.id.in_(free)).values(claim=claim, claimed_until=until))
    mine = select(experiments).where(is_due, c.claim == claim, c.claimed_until == until)
    found = await rows.read_each(connection, mine.order_by(c.priority.desc(), c.created_at, c.id))
    return [each for each in found if each is not None]


async def count_by_state(connection: AsyncConnection) -> Mapping[State, int]:
    """Return the number in each state, zeros included."""
    statement = select(experiments.c.state, func.count()).group_by(experiments.c.state)
    counted = {row.state: row[1] for row in await connection.execute(statement)}
    return {state: counted.get(state, 0) for state in State}


async def _write(
    connection: AsyncConnection, experiment_id: str, changes: Mapping[str, Any], *, at: datetime
) -> ExperimentRecord:
    statement = (
        update(experiments)
        .where(experiments.c.id == experiment_id)
        .values(**changes, version=experiments.c.version + 1, updated_at=at)
    )
    return rows.record((await connection.execute(statement.returning(experiments))).one())


async def _write_labels(
    connection: AsyncConnection, experiment_id: str, labels: Mapping[str, str], *, created_at: datetime
) -> None:
    if labels:
        marks = [
            {"experiment_id": experiment_id, "key": key, "value": value, "created_at": created_at}
            for key, value in labels.items()
        ]
        await connection.execute(insert(experiment_labels), marks)


async def _stale(connection: AsyncConnection, experiment_id: str, wanted: str) -> StaleState:
    """Return the error of a fence that did not hold. Raises ExperimentNotFound where nothing is there."""
    stored = await rows.get(connection, experiment_id)
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

"""The story of experiments: events under a global sequence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import ExperimentNotFound
from service.ports import Event
from service.store.tables import event_counter, events

__all__ = ["append", "newest_sequence", "read"]

# Built once: putting a statement together costs more than the database takes to run it.
_COUNT_ON: Final = update(event_counter).values(value=event_counter.c.value + 1).returning(event_counter.c.value)
_APPEND: Final = insert(events)


def append(
    connection: Connection,
    experiment_id: str,
    type_: Literal["state", "trial", "condition"],
    data: dict[str, Any],
    *,
    at: datetime,
) -> Event:
    """Append to the story. Raises ExperimentNotFound.

    The number comes from a row that stays locked until the commit, so numbers become visible in
    ascending order: who has read n will never find a lower one afterwards. (A database sequence
    hands numbers out in one order and lets them commit in another.) Write the event LAST in its
    transaction: whoever holds this lock must not wait for another.
    """
    sequence = connection.execute(_COUNT_ON).scalar_one()
    event = Event(sequence=sequence, experiment_id=experiment_id, type=type_, data=data, at=at)
    try:
        connection.execute(
            _APPEND, {"sequence": sequence, "experiment_id": experiment_id, "type": type_, "data": data, "at": at}
        )
    except IntegrityError as error:
        raise ExperimentNotFound(f"There is no experiment {experiment_id}.", experiment_id=experiment_id) from error
    return event


def read(connection: Connection, *, after: int, experiment_id: str | None, limit: int) -> Sequence[Event]:
    """Return at most `limit` events with a sequence above `after`, ascending."""
    statement = select(events).where(events.c.sequence > after).order_by(events.c.sequence).limit(limit)
    if experiment_id is not None:
        statement = statement.where(events.c.experiment_id == experiment_id)
    return [Event(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001 - public, named so by SQLAlchemy


def newest_sequence(connection: Connection) -> int:
    """Return the sequence of the newest event ever, its experiment deleted or not; 0 before the first."""
    return int(connection.execute(select(event_counter.c.value)).scalar_one())

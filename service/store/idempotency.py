"""Idempotency keys: which request made which experiment."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from service.errors import IdempotencyConflict
from service.ports import ExperimentRecord, Idempotency
from service.store import rows
from service.store.tables import idempotency_keys

__all__ = ["find", "take"]


def find(connection: Connection, idempotency: Idempotency) -> ExperimentRecord | None:
    """Return what this key made; None if new. Raises IdempotencyConflict for another body."""
    keys = idempotency_keys.c
    statement = select(keys.body_sha256, keys.experiment_id).where(
        keys.owner == idempotency.owner, keys.route == idempotency.route, keys.key == idempotency.key
    )
    earlier = connection.execute(statement).one_or_none()
    if earlier is None:
        return None
    if earlier.body_sha256 != idempotency.body_sha256:
        raise IdempotencyConflict("This idempotency key was used with another body.", key=idempotency.key)
    return rows.find(connection, earlier.experiment_id)  # None: deleted since, and the key with it


def take(connection: Connection, idempotency: Idempotency, experiment_id: str) -> ExperimentRecord | None:
    """Tie the key to `experiment_id` and return None, or return what an earlier request made with it.

    The unique index decides a race: a loser waits for the winner's commit and then reads it.
    Raises IdempotencyConflict for another body.
    """
    statement = insert(idempotency_keys).values(
        owner=idempotency.owner,
        route=idempotency.route,
        key=idempotency.key,
        body_sha256=idempotency.body_sha256,
        experiment_id=experiment_id,
    )
    while True:
        try:
            with connection.begin_nested():
                connection.execute(statement)
        except IntegrityError:
            if (earlier := find(connection, idempotency)) is not None:
                return earlier
            continue  # deleted since: the key is free again
        return None

"""Stored experiments read back into records."""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, bindparam, select

from service.errors import ExperimentNotFound
from service.experiment import State
from service.ports import ExperimentRecord
from service.store.tables import experiments

__all__ = ["find", "get", "read_each", "record"]

# Built once: putting a statement together costs more than the database takes to run it.
_FIND: Final = select(experiments).where(experiments.c.id == bindparam("experiment_id"))
_FIND_LOCKED: Final = _FIND.with_for_update(key_share=True)
_LOG: Final = logging.getLogger(__name__)
# What decoding a column raises: a text that is no JSON or time, a state that the table does not have.
_UNREADABLE: Final = (ValueError, TypeError)


def record(row: Row[Any]) -> ExperimentRecord:
    """Return the record of a row of `experiments`. Raises ValueError for a state unknown here."""
    return ExperimentRecord(**{**row._mapping, "state": State(row.state)})  # noqa: SLF001 - public, named so by SQLAlchemy


def find(connection: Connection, experiment_id: str, *, for_update: bool = False) -> ExperimentRecord | None:
    """Return one experiment, locked until the transaction ends if asked; None where there is none."""
    row = connection.execute(_FIND_LOCKED if for_update else _FIND, {"experiment_id": experiment_id}).one_or_none()
    return None if row is None else record(row)


def get(connection: Connection, experiment_id: str, *, for_update: bool = False) -> ExperimentRecord:
    """Return one experiment as `find` does. Raises ExperimentNotFound."""
    found = find(connection, experiment_id, for_update=for_update)
    if found is None:
        raise ExperimentNotFound(f"There is no experiment {experiment_id}.", experiment_id=experiment_id)
    return found


def read_each(connection: Connection, statement: Select[Any]) -> list[ExperimentRecord | None]:
    """Return a record for each row that `statement` selects from `experiments`, None where it cannot be read.

    One bad row fails the whole fetch, so they are then read one by one.
    """
    try:
        return [record(row) for row in connection.execute(statement)]
    except _UNREADABLE:
        ids = connection.scalars(statement.with_only_columns(experiments.c.id)).all()
        return [_read(connection, experiment_id) for experiment_id in ids]


def _read(connection: Connection, experiment_id: str) -> ExperimentRecord | None:
    try:
        return get(connection, experiment_id)
    except _UNREADABLE as error:
        _LOG.error("experiment %s cannot be read and is left out: %s", experiment_id, error)
        return None

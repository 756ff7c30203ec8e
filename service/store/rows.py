"""Stored experiments read back into records."""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ExperimentNotFound
from service.experiment import State
from service.ports import ExperimentRecord
from service.store.tables import experiments

__all__ = ["find", "get", "read_each", "record"]

_LOG: Final = logging.getLogger(__name__)
# What decoding a column raises: a text that is no JSON or time, a state that the table does not have.
_UNREADABLE: Final = (ValueError, TypeError)


def record(row: Row[Any]) -> ExperimentRecord:
    """Return the record of a row of `experiments`. Raises ValueError for a state unknown here."""
    return ExperimentRecord(**{**row._mapping, "state": State(row.state)})  # noqa: SLF001 - public, named so by SQLAlchemy


async def find(connection: AsyncConnection, experiment_id: str, *, for_update: bool = False) -> ExperimentRecord | None:
    """Return one experiment, locked until the transaction ends if asked; None where there is none."""
    statement = select(experiments).where(experiments.c.id == experiment_id)
    if for_update:
        statement = statement.with_for_update(key_share=True)
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else record(row)


async def get(connection: AsyncConnection, experiment_id: str, *, for_update: bool = False) -> ExperimentRecord:
    """Return one experiment as `find` does. Raises ExperimentNotFound."""
    found = await find(connection, experiment_id, for_update=for_update)
    if found is None:
        raise ExperimentNotFound(f"There is no experiment {experiment_id}.", experiment_id=experiment_id)
    return found


async def read_each(connection: AsyncConnection, statement: Select[Any]) -> list[ExperimentRecord | None]:
    """Return a record for each row that `statement` selects from `experiments`, None where it cannot be read.

    One bad row fails the whole fetch, so they are then read one by one.
    """
    try:
        return [record(row) for row in await connection.execute(statement)]
    except _UNREADABLE:
        ids = (await connection.scalars(statement.with_only_columns(experiments.c.id))).all()
        return [await _read(connection, experiment_id) for experiment_id in ids]


async def _read(connection: AsyncConnection, experiment_id: str) -> ExperimentRecord | None:
    try:
        return await get(connection, experiment_id)
    except _UNREADABLE as error:
        _LOG.error("experiment %s cannot be read and is left out: %s", experiment_id, error)
        return None

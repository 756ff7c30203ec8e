"""Keyset pages of experiments."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, exists, select, tuple_, union_all

from service.experiment import State
from service.ports import ExperimentRecord, ListQuery, Page
from service.store.rows import read_each
from service.store.tables import experiment_labels, experiments

__all__ = ["page"]


def page(connection: Connection, query: ListQuery) -> Page:
    """Return the page behind `query.after`. A row that cannot be read is left out and logged."""
    return _page(connection, query, num_rows=query.page_size)


def _page(connection: Connection, query: ListQuery, *, num_rows: int) -> Page:
    found = read_each(connection, _statement(query, limit=num_rows + 1))
    readable = [item for item in found[:num_rows] if item is not None]
    has_more = len(found) > num_rows
    if has_more and not readable:
        # A page of nothing but bad rows has no position to go on from: look further.
        return _page(connection, query, num_rows=2 * num_rows)
    items = readable[: query.page_size]
    has_more = has_more or len(readable) > len(items)
    return Page(items=items, next_after=_position(items[-1], query) if has_more else None)


def _position(item: ExperimentRecord, query: ListQuery) -> tuple[Any, str]:
    return getattr(item, _order_name(query)), item.id


def _order_name(query: ListQuery) -> str:
    return query.order_by.removeprefix("-")


def _ordered(statement: Any, columns: tuple[Any, ...], query: ListQuery) -> Any:
    is_descending = query.order_by.startswith("-")
    return statement.order_by(*(column.desc() if is_descending else column.asc() for column in columns))


def _statement(query: ListQuery, *, limit: int) -> Select[Any]:
    """Return the page's rows, in order.

    Their ids come from one walk along an index per state: a walk under `state IN (...)` would
    have to read and sort every experiment in these states.
    """
    walks = [_walk(query, state, limit=limit) for state in query.states or (None,)]
    ids = walks[0] if len(walks) == 1 else union_all(*(select(walk.subquery()) for walk in walks))
    columns = (experiments.c[_order_name(query)], experiments.c.id)
    statement: Select[Any] = _ordered(select(experiments).where(experiments.c.id.in_(ids)), columns, query)
    return statement.limit(limit)


def _walk(query: ListQuery, state: State | None, *, limit: int) -> Select[Any]:
    """Return the ids of the first `limit` that match, from the index of the label that is asked for, if any."""
    labels = sorted(query.labels.items())
    walked = experiment_labels if labels else experiments
    id_ = experiment_labels.c.experiment_id if labels else experiments.c.id
    statement = select(id_)
    if labels:
        (key, value), *others = labels
        statement = statement.where(walked.c.key == key, walked.c.value == value)
        statement = statement.where(*(_has_label(id_, *other) for other in others))
    wanted = {"owner": query.owner, "name": query.name, "kind": query.kind, "state": state}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    statement = statement.where(*(walked.c[name] == wanted[name] for name in wanted if name in walked.c))
    if elsewhere := [experiments.c[name] == wanted[name] for name in wanted if name not in walked.c]:
        statement = statement.where(exists().where(experiments.c.id == id_, *elsewhere))
    columns: tuple[Any, ...] = (walked.c[_order_name(query)], id_)
    position: tuple[Any, ...] | None = query.after
    if query.name is not None and _order_name(query) == "name":
        columns, position = columns[1:], position and position[1:]  # they share the name: the id is the order
    if position is not None:
        here, there = tuple_(*columns), tuple_(*position, types=[column.type for column in columns])
        statement = statement.where(here < there if query.order_by.startswith("-") else here > there)
    ordered: Select[Any] = _ordered(statement, columns, query)
    return ordered.limit(limit)


def _has_label(experiment_id: ColumnElement[str], key: str, value: str) -> ColumnElement[bool]:
    label = experiment_labels.alias()
    return exists().where(label.c.experiment_id == experiment_id, label.c.key == key, label.c.value == value)

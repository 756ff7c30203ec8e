"""Pages of experiments: how the database finds them, by its own word."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from sqlalchemy import Connection, event

from service.experiment import State
from service.ports import ListQuery
from service.store import SqlStore

ORDERS = get_args(get_type_hints(ListQuery)["order_by"])
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "state": {"states": (State.SUCCEEDED,)},
    "kind": {"kind": "pretrain"},
    "name": {"name": "x"},
    "label": {"labels": {"team": "vision"}},
}
POSITIONS = {"created_at": datetime(2030, 1, 1, tzinfo=UTC), "name": "x", "priority": 0}

Step = tuple[int, int, str]  # its number, that of the step it is part of, and its words


@pytest.fixture
async def store(tmp_path: Path, migrated_database: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(f"sqlite:///{shutil.copy(migrated_database, tmp_path)}")
    yield store
    await store.close()


@pytest.mark.anyio
async def test_a_page_under_any_filter_in_any_order_is_one_walk_from_where_the_last_one_ended(store: SqlStore) -> None:
    for owner, (name, filters), order_by in itertools.product((None, "ada"), FILTERS.items(), ORDERS):
        after = (POSITIONS[order_by.removeprefix("-")], "exp_1")
        query = ListQuery(owner=owner, order_by=order_by, after=after, **filters)
        (walk,) = walk_of(await plan(store, query))
        table = "experiment_labels" if name == "label" else "experiments"
        assert walk.startswith(f"SEARCH {table} USING COVERING INDEX"), (owner, name, order_by, walk)
        assert "id)>" in walk or "id)<" in walk or "id>" in walk or "id<" in walk, (owner, name, order_by, walk)


@pytest.mark.anyio
async def test_what_is_asked_beside_a_label_is_looked_up_on_the_walk_along_it(store: SqlStore) -> None:
    for order_by in ORDERS:
        both = {"team": "vision", "year": "2030"}
        query = ListQuery(labels=both, kind="sweep", states=(State.RUNNING,), owner="ada", order_by=order_by)
        steps = [step for step in walk_of(await plan(store, query)) if not step.startswith("CORRELATED")]
        walk, *looked_up = steps
        assert walk.startswith("SEARCH experiment_labels USING COVERING INDEX ix_experiment_labels_owner_"), steps
        assert len(looked_up) == 2
        assert all("USING INDEX sqlite_autoindex" in step for step in looked_up), steps


@pytest.mark.anyio
async def test_a_page_of_more_states_walks_once_for_each(store: SqlStore) -> None:
    one = walk_of(await plan(store, ListQuery(states=(State.RUNNING,), order_by="name")))
    two = walk_of(await plan(store, ListQuery(states=(State.RUNNING, State.FAILED), order_by="name")))
    assert [step for step in two if step.startswith("SEARCH")] == one * 2
    assert not any("TEMP B-TREE FOR ORDER BY" in step or step.startswith("SCAN experiments") for step in two)


async def plan(store: SqlStore, query: ListQuery) -> list[Step]:
    """Return how the database reads the page."""
    steps: list[Step] = []

    def explain(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not steps and statement.startswith("SELECT"):
            found = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            steps.extend((number, parent, words) for number, parent, _, words in found)

    engine = store._database.readers.engine
    event.listen(engine, "before_cursor_execute", explain)
    try:
        await store.list(replace(query, page_size=25))
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    return steps


def walk_of(steps: list[Step]) -> list[str]:
    """Return the steps that choose the page's ids; what comes after them reads those few rows."""
    inside = {number for number, _, words in steps if words.startswith("LIST SUBQUERY")}
    chosen = []
    for number, parent, words in steps:
        if parent in inside:
            inside.add(number)
            chosen.append(words)
    return chosen

"""Every sentence of the `Store` protocol, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import String, insert, literal, update
from sqlalchemy.exc import StatementError

from service.edge.identifiers import new_experiment_id
from service.errors import (
    ExperimentNotFound,
    IdempotencyConflict,
    IllegalTransition,
    StaleState,
    StaleVersion,
    StoreUnavailable,
    TokenNotFound,
)
from service.experiment import ACTIVE, TERMINAL, State
from service.ports import (
    Event,
    ExperimentRecord,
    Idempotency,
    ListQuery,
    NewExperiment,
    Role,
    Store,
    TokenRecord,
)
from service.store import SqlStore, migrations
from service.store import events as story
from service.store.database import blocking_engine
from service.store.experiments import QUEUE_WINDOW, add, claim_due
from service.store.tables import experiment_labels, experiments, metadata
from tests.conformance.postgres import PostgresServer, fresh_database
from tests.fakes.clock import Clock

pytestmark = pytest.mark.anyio

START = datetime(2030, 1, 1, tzinfo=UTC)
PATIENCE_S = 60.0  # two stores on one SQLite file wait by chance, and longer on a busy machine
KEY = Idempotency(owner="ada", route="POST /experiments", key="k-1", body_sha256="aa")
PATHS = {
    State.QUEUED: (),
    State.STARTING: (State.STARTING,),
    State.RUNNING: (State.STARTING, State.RUNNING),
    State.RECOVERING: (State.STARTING, State.RUNNING, State.RECOVERING),
    State.PAUSING: (State.STARTING, State.RUNNING, State.PAUSING),
    State.PAUSED: (State.PAUSED,),
    State.CANCELLING: (State.STARTING, State.CANCELLING),
    State.SUCCEEDED: (State.STARTING, State.RUNNING, State.SUCCEEDED),
    State.FAILED: (State.FAILED,),
    State.CANCELLED: (State.CANCELLED,),
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "template.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        migrations.upgrade(server.address())
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        path = tmp_path / "simclr.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    server: PostgresServer = request.getfixturevalue("server")
    # The counter goes on: no test may rest on sequences that begin at one.
    server.execute("TRUNCATE experiments, experiment_labels, events, idempotency_keys, tokens")
    return server.address()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(address: str, clock: Clock) -> AsyncIterator[SqlStore]:
    store = SqlStore(address, clock=clock, wait_s=PATIENCE_S)
    protocol: Store = store  # the type checker's part of the conformance
    yield store
    await protocol.close()


def asked(**changes: Any) -> NewExperiment:
    new = NewExperiment(
        id=new_experiment_id(),
        name="emoji",
        kind="pretrain",
        owner="ada",
        labels={"team": "vision"},
        priority=0,
        request={"data": {"dataset": "openmoji"}},
        spec={"optim": {"weight_decay": 1e-6, "base_lr": 0.30000000000000004}, "note": "é\u0000☃"},
        spec_digest="d1",
        plan={"steps": 100},
        max_attempts=3,
        wall_time_s=7200,
    )
    return replace(new, **changes)


async def made(store: Store, state: State = State.QUEUED, **changes: Any) -> ExperimentRecord:
    """Create an experiment and lead it to `state`."""
    record, _ = await store.create(asked(**changes), None)
    for target in PATHS[state]:
        record = await store.transition(record.id, source=record.state, target=target)
    return record


async def story_of(store: Store, experiment_id: str) -> Sequence[Event]:
    return await store.events(after=0, experiment_id=experiment_id)


async def last_sequence(store: Store) -> int:
    record = await made(store)
    return (await story_of(store, record.id))[-1].sequence


async def all_pages(store: Store, query: ListQuery) -> list[ExperimentRecord]:
    items: list[ExperimentRecord] = []
    while True:
        page = await store.list(query)
        assert len(page.items) <= query.page_size
        items += page.items
        if page.next_after is None:
            return items
        query = replace(query, after=page.next_after)


async def ids(store: Store, query: ListQuery) -> list[str]:
    return [item.id for item in await all_pages(store, query)]


async def damage(store: SqlStore, experiment_id: str, column: str, text: str) -> None:
    """Write a text that this version cannot read."""
    statement = update(experiments).where(experiments.c.id == experiment_id)
    with store._database.writers.engine.begin() as connection:
        connection.execute(statement.values({column: literal(text, String)}))


# --- create, get --------------------------------------------------------------------------------


async def test_ping_returns_when_the_database_answers(store: SqlStore) -> None:
    await store.ping()


async def test_create_stores_everything_as_queued_with_a_first_event(store: SqlStore, clock: Clock) -> None:
    new = asked(parent={"experiment_id": "exp_0", "relation": "clone"})
    record, is_replay = await store.create(new, None)
    assert not is_replay
    assert {name: getattr(record, name) for name in new.__dataclass_fields__} == {
        name: getattr(new, name) for name in new.__dataclass_fields__
    }
    assert (record.state, record.version, record.attempt, record.failures) == (State.QUEUED, 1, 0, 0)
    assert record.created_at == record.updated_at == clock.now
    assert record.created_at.utcoffset() == timedelta(0)
    assert (record.started_at, record.finished_at, record.not_before, record.claim, record.reason) == (None,) * 5
    assert record.conditions == []
    assert await store.get(record.id) == record
    (first,) = await story_of(store, record.id)
    assert (first.type, first.data, first.at) == (
        "state",
        {"state": "queued", "previous": None, "reason": None, "attempt": 0},
        clock.now,
    )


async def test_get_of_an_unknown_experiment_is_not_found(store: SqlStore) -> None:
    with pytest.raises(ExperimentNotFound):
        await store.get("exp_unknown")


async def test_times_in_another_zone_are_stored_as_utc(store: SqlStore, clock: Clock) -> None:
    clock.now = datetime.fromisoformat("2030-06-01T12:00:00.000001+05:30")
    record = await made(store)
    assert (await store.get(record.id)).created_at.isoformat() == "2030-06-01T06:30:00.000001+00:00"


async def test_a_specification_that_is_no_json_is_refused_and_leaves_nothing(store: SqlStore) -> None:
    with pytest.raises(StatementError, match="not JSON compliant"):
        await store.create(asked(spec={"lr": float("nan")}), KEY)
    assert await store.find_idempotent(KEY) is None


# --- idempotency --------------------------------------------------------------------------------


async def test_a_repeated_key_replays_the_first_experiment(store: SqlStore) -> None:
    first, _ = await store.create(asked(), KEY)
    again, is_replay = await store.create(asked(name="other"), KEY)
    assert is_replay
    assert again == first
    assert await ids(store, ListQuery()) == [first.id]


async def test_a_key_with_another_body_is_a_conflict_and_creates_nothing(store: SqlStore) -> None:
    first, _ = await store.create(asked(), KEY)
    other = replace(KEY, body_sha256="bb")
    with pytest.raises(IdempotencyConflict):
        await store.create(asked(), other)
    with pytest.raises(IdempotencyConflict):
        await store.find_idempotent(other)
    assert await ids(store, ListQuery()) == [first.id]


@pytest.mark.parametrize("scope", [{"owner": "bob"}, {"route": "POST /other"}, {"key": "k-2"}])
async def test_keys_are_scoped_to_owner_and_route(store: SqlStore, scope: dict[str, str]) -> None:
    await store.create(asked(), KEY)
    elsewhere = replace(KEY, **scope)
    assert await store.find_idempotent(elsewhere) is None
    _, is_replay = await store.create(asked(), elsewhere)
    assert not is_replay


async def test_find_idempotent_returns_what_the_key_made(store: SqlStore) -> None:
    assert await store.find_idempotent(KEY) is None
    record, _ = await store.create(asked(), KEY)
    assert await store.find_idempotent(KEY) == record


async def test_of_fifty_creates_at_once_with_one_key_one_creates(store: SqlStore) -> None:
    answers = await asyncio.gather(*(store.create(asked(), KEY) for _ in range(50)))
    assert Counter(is_replay for _, is_replay in answers) == {False: 1, True: 49}
    assert len({record.id for record, _ in answers}) == 1
    (only,) = await ids(store, ListQuery())
    assert len(await story_of(store, only)) == 1


async def test_of_many_bodies_at_once_with_one_key_one_wins_and_the_others_conflict(store: SqlStore) -> None:
    bodies = [replace(KEY, body_sha256=f"{number:02}") for number in range(12)]
    answers = await asyncio.gather(*(store.create(asked(), body) for body in bodies), return_exceptions=True)
    assert Counter(type(answer) for answer in answers) == {tuple: 1, IdempotencyConflict: 11}
    assert len(await ids(store, ListQuery())) == 1


async def test_two_stores_on_one_database_share_keys(store: SqlStore, address: str) -> None:
    other = SqlStore(address, wait_s=PATIENCE_S)
    try:
        answers = await asyncio.gather(*(each.create(asked(), KEY) for each in (store, other) * 8))
    finally:
        await other.close()
    assert Counter(is_replay for _, is_replay in answers) == {False: 1, True: 15}


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order_by", ["created_at", "-created_at", "name", "-name", "priority", "-priority"])
async def test_pages_follow_every_order_with_the_id_as_tie_break(store: SqlStore, clock: Clock, order_by: Any) -> None:
    names = ["b", "B", "a-1", "a_1", "é", "b", "a"]
    records = []
    for number, name in enumerate(names):
        clock.advance(number % 2)  # pairs at the same time
        records.append(await made(store, name=name, priority=number % 3))
    column = order_by.lstrip("-")
    expected = sorted(records, key=lambda each: (getattr(each, column), each.id), reverse=order_by.startswith("-"))
    for page_size in (1, 2, 7, 50):
        query = ListQuery(order_by=order_by, page_size=page_size)
        assert await ids(store, query) == [each.id for each in expected]


async def test_a_full_last_page_says_that_it_is_the_last(store: SqlStore) -> None:
    for _ in range(4):
        await made(store)
    first = await store.list(ListQuery(page_size=2))
    last = await store.list(ListQuery(page_size=2, after=first.next_after))
    assert first.next_after is not None
    assert (len(last.items), last.next_after) == (2, None)
    assert (await store.list(ListQuery(name="nothing"))).items == []


async def test_pages_hold_each_row_once_while_rows_are_inserted(store: SqlStore, clock: Clock) -> None:
    before: set[str] = set()
    with store._database.writers.engine.begin() as connection:
        for number in range(300):
            clock.advance(number % 10 == 0)  # ten share each time
            before.add(add(connection, asked(), at=clock.now).id)
    seen: list[str] = []
    query = ListQuery(page_size=29)
    while True:
        page = await store.list(query)
        seen += [item.id for item in page.items]
        await made(store)  # the same time as the newest: before the position of a newest-first walk
        clock.advance(1)
        await made(store)
        if page.next_after is None:
            break
        query = replace(query, after=page.next_after)
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


async def test_filters_are_conjunctive(store: SqlStore) -> None:
    wanted = await made(store, State.RUNNING, name="n", kind="sweep", owner="bob", labels={"a": "1", "b": "2"})
    await made(store, State.RUNNING, name="n", kind="sweep", owner="bob", labels={"a": "1"})
    await made(store, State.RUNNING, name="n", kind="sweep", owner="ada", labels={"a": "1", "b": "2"})
    await made(store, State.RUNNING, name="n", kind="pretrain", owner="bob", labels={"a": "1", "b": "2"})
    await made(store, State.RUNNING, name="m", kind="sweep", owner="bob", labels={"a": "1", "b": "2"})
    await made(store, State.FAILED, name="n", kind="sweep", owner="bob", labels={"a": "1", "b": "2"})
    query = ListQuery(
        states=(State.RUNNING, State.PAUSED), name="n", kind="sweep", owner="bob", labels={"a": "1", "b": "2"}
    )
    assert await ids(store, query) == [wanted.id]


async def test_several_states_are_merged_in_order_over_pages(store: SqlStore, clock: Clock) -> None:
    records = []
    for state in (State.FAILED, State.QUEUED, State.PAUSED, State.FAILED, State.CANCELLED, State.QUEUED):
        clock.advance(1)
        records.append(await made(store, state))
    wanted = [each.id for each in records if each.state in (State.FAILED, State.QUEUED)]
    query = ListQuery(states=(State.QUEUED, State.FAILED), order_by="created_at", page_size=1)
    assert await ids(store, query) == wanted


@pytest.mark.parametrize("order_by", ["-created_at", "name"])
async def test_labels_filter_by_key_and_value_and_follow_updates(store: SqlStore, order_by: Any) -> None:
    first = await made(store, name="a", labels={"team": "vision", "x": "y"})
    second = await made(store, name="b", labels={"team": "audio"})
    by = ListQuery(order_by=order_by, page_size=1)
    assert await ids(store, replace(by, labels={"team": "vision"})) == [first.id]
    assert await ids(store, replace(by, labels={"team": "y"})) == []
    await store.update(second.id, expected_version=None, labels={"team": "vision"}, priority=None)
    await store.update(first.id, expected_version=None, labels={}, priority=None)
    assert await ids(store, replace(by, labels={"team": "vision"})) == [second.id]
    assert await ids(store, replace(by, labels={"x": "y"})) == []


async def test_a_label_is_paged_by_name_and_by_the_priority_of_now(store: SqlStore) -> None:
    made_as = [("b", 1), ("a", 2), ("c", 0), ("a", 1)]
    b, a, c, other_a = [
        (await made(store, name=name, priority=priority, labels={"x": "y", "z": "w"})).id for name, priority in made_as
    ]
    await made(store, name="a", priority=1, labels={"x": "n"})
    foreign = await made(store, name="a", priority=3, labels={"x": "y"}, owner="eve")
    by = ListQuery(labels={"x": "y"}, owner="ada", page_size=1)
    assert await ids(store, replace(by, order_by="name")) == [*sorted([a, other_a]), b, c]
    assert await ids(store, replace(by, order_by="-name")) == [c, b, *sorted([a, other_a], reverse=True)]
    assert await ids(store, replace(by, order_by="priority")) == [c, *sorted([b, other_a]), a]

    await store.update(c, expected_version=None, labels=None, priority=5)
    await store.update(a, expected_version=None, labels={"x": "y", "new": "one"}, priority=-5)

    assert await ids(store, replace(by, order_by="-priority")) == [c, *sorted([b, other_a], reverse=True), a]
    everyone = await ids(store, replace(by, order_by="-priority", owner=None))
    assert everyone == [c, foreign.id, *sorted([b, other_a], reverse=True), a]
    assert await ids(store, replace(by, order_by="priority", labels={"z": "w"})) == [*sorted([b, other_a]), c]


async def test_what_an_older_service_writes_beside_this_one_is_paged_like_the_rest(store: SqlStore) -> None:
    ours = await made(store, name="b", priority=1, labels={"x": "y"})
    theirs = await made(store, name="a", priority=3, labels={})
    with store._database.writers.engine.begin() as connection:  # in the words of revision 0003
        named = {"experiment_id": theirs.id, "key": "x", "value": "y", "created_at": theirs.created_at}
        connection.execute(insert(experiment_labels), named)
        connection.execute(update(experiments).where(experiments.c.id == ours.id).values(priority=5))

    for owner in (None, "ada"):
        by = ListQuery(labels={"x": "y"}, owner=owner, page_size=1)
        assert await ids(store, replace(by, order_by="name")) == [theirs.id, ours.id]
        assert await ids(store, replace(by, order_by="priority")) == [theirs.id, ours.id]
        assert await ids(store, replace(by, order_by="-created_at")) == sorted([ours.id, theirs.id], reverse=True)


async def test_owner_scopes_a_list_and_none_means_all(store: SqlStore) -> None:
    mine = await made(store, owner="ada")
    theirs = await made(store, owner="bob")
    assert await ids(store, ListQuery(owner="ada")) == [mine.id]
    assert set(await ids(store, ListQuery())) == {mine.id, theirs.id}
    assert await ids(store, ListQuery(owner="eve")) == []


async def test_count_by_state_counts_every_state(store: SqlStore) -> None:
    for state in (State.QUEUED, State.QUEUED, State.RUNNING, State.FAILED):
        await made(store, state)
    expected = dict.fromkeys(State, 0) | {State.QUEUED: 2, State.RUNNING: 1, State.FAILED: 1}
    assert await store.count_by_state() == expected


@pytest.mark.parametrize(("column", "text"), [("spec", "{"), ("conditions", "{}"), ("state", "dreaming")])
async def test_a_bad_row_is_left_out_of_a_list_and_logged(
    store: SqlStore, clock: Clock, caplog: pytest.LogCaptureFixture, column: str, text: str
) -> None:
    records = []
    for _ in range(6):
        clock.advance(1)
        records.append(await made(store))
    for bad in records[2:4]:
        await damage(store, bad.id, column, text)
    good = [records[number].id for number in (0, 1, 4, 5)]
    for page_size in (1, 2, 3, 10):
        assert await ids(store, ListQuery(order_by="created_at", page_size=page_size)) == good
    assert {record.levelno for record in caplog.records if record.name == "service.store.rows"} == {logging.ERROR}
    assert records[2].id in caplog.text


# --- update -------------------------------------------------------------------------------------


async def test_update_changes_labels_and_priority_and_counts_the_version(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    later = clock.advance(5)
    changed = await store.update(record.id, expected_version=1, labels={"a": "b"}, priority=-4)
    assert (changed.labels, changed.priority, changed.version, changed.updated_at) == ({"a": "b"}, -4, 2, later)
    assert await store.get(record.id) == changed
    assert changed.created_at == record.created_at


async def test_an_update_of_nothing_is_no_change(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    clock.advance(5)
    assert await store.update(record.id, expected_version=None, labels=None, priority=None) == record
    same = await store.update(record.id, expected_version=None, labels=record.labels, priority=record.priority)
    assert same == record


async def test_an_update_of_another_version_is_stale_and_changes_nothing(store: SqlStore) -> None:
    record = await made(store)
    await store.update(record.id, expected_version=1, labels=None, priority=1)
    with pytest.raises(StaleVersion) as stale:
        await store.update(record.id, expected_version=1, labels={"x": "y"}, priority=2)
    assert stale.value.context == {"version": 2}
    assert ((await store.get(record.id)).priority, await ids(store, ListQuery(labels={"x": "y"}))) == (1, [])


async def test_of_updates_at_once_on_one_version_one_wins(store: SqlStore) -> None:
    record = await made(store)
    answers = await asyncio.gather(
        *(store.update(record.id, expected_version=1, labels=None, priority=number) for number in range(1, 9)),
        return_exceptions=True,
    )
    assert Counter(type(answer) for answer in answers) == {ExperimentRecord: 1, StaleVersion: 7}


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.update("exp_no", expected_version=None, labels={}, priority=None),
        lambda store: store.transition("exp_no", source=State.QUEUED, target=State.STARTING),
        lambda store: store.set_condition("exp_no", {"type": "t", "status": "true", "message": "m", "at": "now"}),
        lambda store: store.delete("exp_no"),
        lambda store: store.append_event("exp_no", "trial", {}),
    ],
    ids=["update", "transition", "set_condition", "delete", "append_event"],
)
async def test_writes_to_an_unknown_experiment_are_not_found(store: SqlStore, call: Any) -> None:
    before = await last_sequence(store)
    with pytest.raises(ExperimentNotFound):
        await cast("Awaitable[object]", call(store))
    assert await store.events(after=before) == []


# --- transition ---------------------------------------------------------------------------------


async def test_a_transition_writes_state_and_event_together(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    later = clock.advance(3)
    reason = {"code": "submitted", "message": "sent"}
    moved = await store.transition(
        record.id,
        source=State.QUEUED,
        target=State.STARTING,
        reason=reason,
        attempt=1,
        failures=2,
        not_before=later + timedelta(seconds=9),
    )
    assert (moved.state, moved.version, moved.attempt, moved.failures) == (State.STARTING, 2, 1, 2)
    assert (moved.reason, moved.updated_at, moved.not_before) == (reason, later, later + timedelta(seconds=9))
    assert await store.get(record.id) == moved
    event = (await story_of(store, record.id))[-1]
    assert (event.data, event.at) == (
        {"state": "starting", "previous": "queued", "reason": reason, "attempt": 1},
        later,
    )


async def test_reason_and_backoff_end_with_the_state_while_the_counters_stay(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    await store.transition(
        record.id,
        source=State.QUEUED,
        target=State.STARTING,
        reason={"code": "c", "message": "m"},
        attempt=1,
        failures=1,
        not_before=clock.now,
    )
    moved = await store.transition(record.id, source=State.STARTING, target=State.RUNNING)
    assert (moved.reason, moved.not_before, moved.attempt, moved.failures) == (None, None, 1, 1)


async def test_started_is_the_first_running_and_finished_the_terminal_state(store: SqlStore, clock: Clock) -> None:
    record = await made(store, State.STARTING)
    assert record.started_at is None
    started = clock.advance(1)
    await store.transition(record.id, source=State.STARTING, target=State.RUNNING)
    clock.advance(1)
    await store.transition(record.id, source=State.RUNNING, target=State.RECOVERING)
    clock.advance(1)
    running = await store.transition(record.id, source=State.RECOVERING, target=State.RUNNING)
    assert (running.started_at, running.finished_at) == (started, None)
    finished = clock.advance(1)
    ended = await store.transition(record.id, source=State.RUNNING, target=State.SUCCEEDED)
    assert (ended.started_at, ended.finished_at) == (started, finished)


async def test_a_transition_from_another_state_is_stale_and_writes_nothing(store: SqlStore) -> None:
    record = await made(store, State.RUNNING)
    story_before = await story_of(store, record.id)
    with pytest.raises(StaleState) as stale:
        await store.transition(record.id, source=State.QUEUED, target=State.STARTING)
    assert stale.value.context["state"] == State.RUNNING
    assert await store.get(record.id) == record
    assert await story_of(store, record.id) == story_before


async def test_a_move_that_the_table_lacks_is_illegal(store: SqlStore) -> None:
    record = await made(store)
    with pytest.raises(IllegalTransition):
        await store.transition(record.id, source=State.QUEUED, target=State.RUNNING)
    assert await store.get(record.id) == record


async def test_of_transitions_at_once_one_wins(store: SqlStore) -> None:
    record = await made(store, State.RUNNING)
    targets = [State.SUCCEEDED, State.FAILED, State.PAUSING, State.CANCELLING] * 2
    answers = await asyncio.gather(
        *(store.transition(record.id, source=State.RUNNING, target=target) for target in targets),
        return_exceptions=True,
    )
    assert Counter(type(answer) for answer in answers) == {ExperimentRecord: 1, StaleState: 7}
    assert len(await story_of(store, record.id)) == 4  # queued, starting, running and the one


async def test_a_claim_fences_other_dispatchers_until_it_expires(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    await store.claim_due("one", now=clock.now, lease_s=10)
    move = {"source": State.QUEUED, "target": State.STARTING}
    with pytest.raises(StaleState):
        await store.transition(record.id, **move, claim="two")  # type: ignore[arg-type]  # values of two types
    clock.advance(10)
    moved = await store.transition(record.id, **move, claim="two")  # type: ignore[arg-type]  # as above
    assert moved.state == State.STARTING


async def test_a_claim_lets_its_holder_and_callers_without_one_pass(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    await store.claim_due("one", now=clock.now, lease_s=10)
    await store.transition(record.id, source=State.QUEUED, target=State.STARTING, claim="one")
    moved = await store.transition(record.id, source=State.STARTING, target=State.CANCELLING)
    assert moved.claim == "one"


async def test_an_unclaimed_experiment_moves_for_any_claim(store: SqlStore) -> None:
    record = await made(store)
    moved = await store.transition(record.id, source=State.QUEUED, target=State.STARTING, claim="one")
    assert moved.state == State.STARTING


# --- conditions ---------------------------------------------------------------------------------


async def test_conditions_are_kept_by_type_and_written_only_where_they_change(store: SqlStore) -> None:
    record = await made(store)
    storage = {"type": "storage", "status": "false", "message": "down", "at": "1"}
    await store.set_condition(record.id, storage)
    await store.set_condition(record.id, {**storage, "at": "2"})
    tracking = {"type": "tracking", "status": "true", "message": "", "at": "3"}
    await store.set_condition(record.id, tracking)
    mended = {**storage, "status": "true", "message": "", "at": "4"}
    await store.set_condition(record.id, mended)
    stored = await store.get(record.id)
    assert stored.conditions == [mended, tracking]
    assert stored.version == 4
    told = [(event.type, event.data) for event in await story_of(store, record.id)]
    assert told[1:] == [("condition", storage), ("condition", tracking), ("condition", mended)]


async def test_conditions_set_at_once_are_all_kept(store: SqlStore) -> None:
    record = await made(store)
    conditions = [{"type": f"t{number}", "status": "true", "message": "", "at": "1"} for number in range(8)]
    await asyncio.gather(*(store.set_condition(record.id, condition) for condition in conditions))
    kept = (await store.get(record.id)).conditions
    assert sorted(kept, key=lambda each: str(each["type"])) == conditions


# --- delete -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(TERMINAL | {State.PAUSED}))
async def test_delete_removes_an_experiment_with_its_events_keys_and_labels(store: SqlStore, state: State) -> None:
    record, _ = await store.create(asked(), KEY)
    other = await made(store)
    for target in PATHS[state]:
        record = await store.transition(record.id, source=record.state, target=target)
    await store.delete(record.id)
    with pytest.raises(ExperimentNotFound):
        await store.get(record.id)
    assert await story_of(store, record.id) == []
    assert await ids(store, ListQuery(labels={"team": "vision"})) == [other.id]
    _, is_replay = await store.create(asked(), KEY)
    assert not is_replay


@pytest.mark.parametrize("state", sorted(ACTIVE))
async def test_delete_of_an_active_experiment_is_stale(store: SqlStore, state: State) -> None:
    record = await made(store, state)
    with pytest.raises(StaleState):
        await store.delete(record.id)
    assert await store.get(record.id) == record


async def test_a_sequence_is_not_reused_after_its_experiment_is_gone(store: SqlStore) -> None:
    record = await made(store, State.CANCELLED)
    last = (await story_of(store, record.id))[-1].sequence
    await store.delete(record.id)
    assert await last_sequence(store) > last


# --- claims -------------------------------------------------------------------------------------


async def test_claim_due_returns_the_active_ones_by_priority_then_age(store: SqlStore, clock: Clock) -> None:
    young = [await made(store, state, priority=1) for state in (State.QUEUED,)]
    for state in TERMINAL | {State.PAUSED}:
        await made(store, state, priority=9)
    clock.advance(1)
    active = [await made(store, state) for state in sorted(ACTIVE)]
    high = await made(store, priority=5)
    due = await store.claim_due("one", now=clock.now, lease_s=30)
    assert [each.id for each in due] == [high.id, young[0].id, *[each.id for each in active]]
    until = clock.now + timedelta(seconds=30)
    assert {(each.claim, each.claimed_until) for each in due} == {("one", until)}
    assert await store.get(high.id) == due[0]
    assert due[0].version == high.version


async def test_experiments_in_backoff_are_claimed_too(store: SqlStore, clock: Clock) -> None:
    record = await made(store, State.STARTING)
    later = clock.now + timedelta(hours=1)
    await store.transition(record.id, source=State.STARTING, target=State.QUEUED, not_before=later)
    (due,) = await store.claim_due("one", now=clock.now, lease_s=30)
    assert due.not_before == later


async def test_a_lease_holds_others_off_is_renewed_by_its_holder_and_expires(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    await store.claim_due("one", now=clock.now, lease_s=10)
    assert await store.claim_due("two", now=clock.advance(5), lease_s=10) == []
    (renewed,) = await store.claim_due("one", now=clock.now, lease_s=10)
    assert renewed.claimed_until == clock.now + timedelta(seconds=10)
    assert await store.claim_due("two", now=clock.advance(9), lease_s=10) == []
    (taken,) = await store.claim_due("two", now=clock.advance(1), lease_s=10)
    assert (taken.id, taken.claim) == (record.id, "two")


async def test_a_claim_that_lasts_is_returned_again_and_not_written_again(store: SqlStore, clock: Clock) -> None:
    record = await made(store)
    (first,) = await store.claim_due("one", now=clock.now, lease_s=10)
    (again,) = await store.claim_due("one", now=clock.advance(4), lease_s=10)
    assert (again.id, again.claimed_until) == (record.id, first.claimed_until)


async def test_the_queue_that_others_hold_is_told_on_demand_and_stays_theirs(store: SqlStore, clock: Clock) -> None:
    mine = await made(store)
    await store.claim_due("one", now=clock.now, lease_s=10)
    await made(store, State.RUNNING)
    theirs = await made(store, priority=5)
    await store.claim_due("two", now=clock.now, lease_s=10)
    for _ in range(2):
        found = await store.claim_due("one", now=clock.now, lease_s=10, with_queue_of_others=True)
        assert [(each.id, each.claim) for each in found] == [(theirs.id, "two"), (mine.id, "one")]
    assert [each.id for each in await store.claim_due("one", now=clock.now, lease_s=10)] == [mine.id]


async def test_two_claimers_at_once_share_without_overlap(store: SqlStore, address: str, clock: Clock) -> None:
    records = [await made(store) for _ in range(20)]
    other = SqlStore(address, clock=clock, wait_s=PATIENCE_S)
    try:
        claimed = await asyncio.gather(
            *(each.claim_due(name, now=clock.now, lease_s=30) for each, name in ((store, "one"), (other, "two")) * 3)
        )
        holders = {(each.id, each.claim) for batch in claimed for each in batch}
    finally:
        await other.close()
    assert sorted(holder[0] for holder in holders) == sorted(each.id for each in records)


async def test_a_claimer_never_takes_what_another_is_about_to_commit(
    store: SqlStore, address: str, clock: Clock
) -> None:
    record = await made(store)
    other = SqlStore(address, clock=clock, wait_s=PATIENCE_S)
    try:
        with store._database.writers.engine.begin() as connection:
            claim_due(connection, "one", queued=[record.id], now=clock.now, lease_s=30)
            late = asyncio.create_task(other.claim_due("two", now=clock.now, lease_s=30))
            await asyncio.wait({late}, timeout=0.2)
        assert await late == []
    finally:
        await other.close()
    assert (await store.get(record.id)).claim == "one"


async def test_of_a_long_queue_the_head_of_each_owner_is_claimed(store: SqlStore, clock: Clock) -> None:
    crowd = [await made(store, owner="ada") for _ in range(QUEUE_WINDOW + 2)]
    urgent, lone = await made(store, owner="ada", priority=5), await made(store, owner="eve")
    due = await store.claim_due("one", now=clock.now, lease_s=30)
    expected = {urgent.id, lone.id} | {each.id for each in crowd[: QUEUE_WINDOW - 1]}
    assert {each.id for each in due} == expected
    assert due[0].id == urgent.id


async def test_a_bad_row_does_not_hide_the_others_from_a_claimer(
    store: SqlStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = await made(store, priority=5), await made(store)
    await damage(store, bad.id, "spec", "{")
    due = await store.claim_due("one", now=clock.now, lease_s=30)
    assert [each.id for each in due] == [good.id]
    assert bad.id in caplog.text


# --- reach --------------------------------------------------------------------------------------


async def test_where_every_connection_is_taken_a_call_is_refused_and_the_next_one_served(
    store: SqlStore, address: str, clock: Clock
) -> None:
    del store  # it has made the tables
    crowded = SqlStore(address, clock=clock, wait_s=0.2)
    try:
        engine = crowded._database.readers.engine
        with contextlib.ExitStack() as held:
            for _ in range(engine.pool.size()):  # type: ignore[attr-defined] # a queue has one
                held.enter_context(engine.begin())
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(crowded.ping(), 5)
        await crowded.ping()
    finally:
        await crowded.close()


# --- events -------------------------------------------------------------------------------------


async def test_events_are_read_ascending_above_a_number_up_to_a_limit(store: SqlStore) -> None:
    start = await last_sequence(store)
    one, two = await made(store), await made(store, State.STARTING)
    trial = await store.append_event(one.id, "trial", {"trial": "t0", "loss": 0.1})
    everything = await store.events(after=start)
    assert [each.sequence for each in everything] == sorted(each.sequence for each in everything)
    assert [each.experiment_id for each in everything] == [one.id, two.id, two.id, one.id]
    assert everything[-1] == trial
    assert await store.events(after=start, limit=2) == everything[:2]
    assert await store.events(after=start, experiment_id=two.id) == everything[1:3]
    assert await store.events(after=trial.sequence) == []


async def test_the_newest_number_is_that_of_the_last_event_even_of_one_that_was_deleted(store: SqlStore) -> None:
    before = await store.newest_sequence()
    record = await made(store)
    last = await store.append_event(record.id, "trial", {"trial": "t0"})
    assert await store.newest_sequence() == last.sequence == before + 2
    await store.transition(record.id, source=State.QUEUED, target=State.CANCELLED)
    await store.delete(record.id)
    assert await store.newest_sequence() == last.sequence + 1


async def test_a_reader_never_finds_a_lower_number_behind_a_higher_one(store: SqlStore) -> None:
    records = [await made(store) for _ in range(8)]
    start = await last_sequence(store)
    seen: list[int] = []

    async def write(experiment_id: str) -> None:
        for number in range(10):
            await store.append_event(experiment_id, "trial", {"number": number})

    async def read(writers: asyncio.Task[Any]) -> None:
        is_last = False
        while not is_last:
            is_last = writers.done()
            seen.extend(event.sequence for event in await store.events(after=seen[-1] if seen else start))

    writers = asyncio.ensure_future(asyncio.gather(*(write(record.id) for record in records)))
    await read(cast("asyncio.Task[Any]", writers))
    await writers
    assert len(seen) == 80
    assert seen == [event.sequence for event in await store.events(after=start)]


async def test_an_event_waits_for_the_commit_of_the_number_before_it(store: SqlStore, address: str) -> None:
    first, second = await made(store), await made(store)
    start = await last_sequence(store)
    other = SqlStore(address, wait_s=PATIENCE_S)
    try:
        with store._database.writers.engine.begin() as connection:
            early = story.append(connection, first.id, "trial", {}, at=START)
            late = asyncio.create_task(other.append_event(second.id, "trial", {}))
            done, _ = await asyncio.wait({late}, timeout=0.2)
            assert not done, "a higher number was committed before a lower one"
            assert await store.events(after=start) == []
        assert (await late).sequence > early.sequence
    finally:
        await other.close()
    assert [event.experiment_id for event in await store.events(after=start)] == [first.id, second.id]


# --- tokens -------------------------------------------------------------------------------------


def token(**changes: Any) -> TokenRecord:
    record = TokenRecord(
        id="tok_1",
        name="laptop",
        owner="ada",
        role=Role.SUBMITTER,
        created_at=START,
        expires_at=START + timedelta(days=1),
        revoked_at=None,
    )
    return replace(record, **changes)


async def test_a_token_is_found_by_the_digest_of_its_secret_only(store: SqlStore) -> None:
    await store.create_token(token(), "digest")
    found = await store.find_token("digest")
    assert found == token()
    assert found is not None
    assert found.role is Role.SUBMITTER
    assert await store.find_token("other") is None


async def test_tokens_are_listed_newest_first(store: SqlStore) -> None:
    newer = token(id="tok_2", created_at=START + timedelta(seconds=1), expires_at=None)
    await store.create_token(token(), "digest")
    await store.create_token(newer, "digest 2")
    assert await store.list_tokens() == [newer, token()]


async def test_a_revoked_token_is_still_found_and_keeps_its_first_time(store: SqlStore, clock: Clock) -> None:
    await store.create_token(token(), "digest")
    await store.revoke_token("tok_1")
    clock.advance(5)
    await store.revoke_token("tok_1")
    assert await store.find_token("digest") == token(revoked_at=START)


async def test_revoking_an_unknown_token_is_not_found(store: SqlStore) -> None:
    with pytest.raises(TokenNotFound):
        await store.revoke_token("tok_no")


# --- outages ------------------------------------------------------------------------------------


async def test_a_caller_who_is_cut_off_leaves_no_lock_behind(store: SqlStore) -> None:
    record = await made(store)
    for yields in range(12):
        call = asyncio.create_task(store.append_event(record.id, "trial", {}))
        for _ in range(yields):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
    mine = await asyncio.wait_for(store.append_event(record.id, "trial", {"last": True}), 5)
    # One who was cut off may yet commit, and take a later number than ours.
    assert mine in await story_of(store, record.id)


async def test_a_lock_that_is_held_too_long_makes_the_store_unavailable(store: SqlStore, address: str) -> None:
    record = await made(store)
    hasty = SqlStore(address, wait_s=0.05)
    try:
        with store._database.writers.engine.begin() as connection:
            story.append(connection, record.id, "trial", {}, at=START)
            with pytest.raises(StoreUnavailable):
                await hasty.append_event(record.id, "trial", {})
            assert await hasty.get(record.id) == record  # readers go on
        await hasty.append_event(record.id, "trial", {})
    finally:
        await hasty.close()


async def test_writers_of_every_kind_at_once_never_lock_each_other_out(
    store: SqlStore, address: str, clock: Clock
) -> None:
    other = SqlStore(address, clock=clock, wait_s=PATIENCE_S)

    async def live(each: SqlStore, number: int) -> None:
        key = replace(KEY, key=f"k-{number % 4}")
        for turn in range(4):
            record, _ = await each.create(asked(), key)
            condition = {"type": "t", "status": f"{number}-{turn}", "message": "", "at": "1"}
            for call in (
                each.claim_due(f"claimer-{number % 2}", now=clock.now, lease_s=0),
                each.set_condition(record.id, condition),
                each.append_event(record.id, "trial", {"number": number}),
                each.update(record.id, expected_version=None, labels={"n": str(number)}, priority=turn),
                each.transition(record.id, source=State.QUEUED, target=State.CANCELLED),
                each.delete(record.id),
            ):
                with contextlib.suppress(ExperimentNotFound, StaleState):
                    await call

    try:
        await asyncio.gather(*(live(each, number) for number, each in enumerate((store, other) * 4)))
    finally:
        await other.close()
    sequences = [event.sequence for event in await store.events(after=0, limit=10_000)]
    assert sequences == sorted(set(sequences))


@pytest.mark.postgres
async def test_migrations_make_the_tables_of_the_code_in_postgresql_and_go_back(server: PostgresServer) -> None:
    with fresh_database(server, "migrated") as address:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(migrations.upgrade, [address] * 3))  # at once, they make one
        migrations.check(address)
        with blocking_engine(address).begin() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrations.downgrade(address, "base")
        assert migrations.current(address) is None


@pytest.mark.postgres
async def test_the_store_comes_back_with_its_server(server: PostgresServer) -> None:
    store = SqlStore(server.address())
    try:
        record = await made(store)
        server.stop()
        with pytest.raises(StoreUnavailable):
            await store.ping()
        with pytest.raises(StoreUnavailable):
            await store.get(record.id)
        server.start()
        assert await store.get(record.id) == record
        server.stop()
        server.start()
        assert await store.get(record.id) == record  # though the connection it kept is dead
    finally:
        await store.close()


@pytest.mark.postgres
async def test_more_callers_than_connections_wait_in_turn(server: PostgresServer) -> None:
    store = SqlStore(server.address())
    try:
        await asyncio.gather(*(store.ping() for _ in range(100)))
    finally:
        await store.close()

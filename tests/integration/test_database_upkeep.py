"""What operators do to a database that holds experiments: migrate it up and back, back it up and restore it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import MetaData, inspect, select

from service.app import create_app
from service.edge.identifiers import new_experiment_id
from service.errors import SettingsError
from service.experiment import State
from service.ports import Idempotency, Role, TokenRecord
from service.store import migrations
from service.store.database import blocking_engine
from tests.conformance.postgres import PostgresServer, dump_database, fresh_database, restore_database
from tests.fakes.control_plane import TEMPLATE, ControlPlane
from tests.harness.object_store import ObjectStore
from trainer.context import trial_key
from trainer.storage import open_storage

REVISIONS = ("0001", "0002", "0003", "0004")
Contents = dict[str, list[dict[str, Any]]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield the address of a database with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'simclr.db'}"
    else:
        with fresh_database(request.getfixturevalue("server"), "upkeep") as address:
            yield address


def test_a_database_with_experiments_goes_back_and_up_again_and_keeps_them(empty: str, tmp_path: Path) -> None:
    as_made: dict[str, Any] = {}
    for revision in REVISIONS:
        migrations.upgrade(empty, revision)
        as_made[revision] = schema(empty)
    assert migrations.current(empty) == migrations.head(), "a new revision belongs into REVISIONS"
    asyncio.run(fill(empty, tmp_path))
    full = contents(empty)
    assert all(full.values())

    for revision in reversed(REVISIONS[:-1]):
        migrations.downgrade(empty, revision)
        assert (migrations.current(empty), schema(empty)) == (revision, as_made[revision])
        assert contents(empty) == narrowed(full, to=contents(empty))
        with pytest.raises(SettingsError, match="simclr db upgrade"):
            migrations.check(empty)
    migrations.upgrade(empty)

    migrations.check(empty)
    assert contents(empty) == full
    asyncio.run(finish_all(empty, tmp_path))


async def fill(address: str, home: Path) -> None:
    """Put something into every table: what ended, what runs, what waits, a key and a token."""
    plane = ControlPlane(database=address, home=home)
    try:
        ended = await plane.submit(labels={"team": "vision", "ü": "ß"}, name="first", priority=3)
        await plane.step_until(ended, State.SUCCEEDED)
        await plane.step_until(await plane.submit(), State.RUNNING)
        await plane.submit()
        key = Idempotency(owner="ada", route="POST /experiments", key="k", body_sha256="b")
        await plane.store.create(replace(TEMPLATE, id=new_experiment_id()), key)
        token = TokenRecord(
            id="tok_1",
            name="ci",
            owner="ada",
            role=Role.SUBMITTER,
            created_at=datetime(2030, 1, 1, tzinfo=UTC),
            expires_at=None,
            revoked_at=None,
        )
        await plane.store.create_token(token, "0" * 64)
    finally:
        await plane.store.close()


async def finish_all(address: str, home: Path) -> None:
    """See that a service takes up what is there: it runs everything to its end."""
    plane = ControlPlane(database=address, home=home)
    try:
        for row in contents(address)["experiments"]:
            await plane.step_until(row["id"], State.SUCCEEDED)
    finally:
        await plane.store.close()


def contents(address: str) -> Contents:
    """Return every row of every table, as the tables are now."""
    engine, tables = blocking_engine(address), MetaData()
    with engine.begin() as connection:
        tables.reflect(connection)
        found = {
            name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for name, table in tables.tables.items()
            if name != "alembic_version"
        }
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


def narrowed(full: Contents, *, to: Contents) -> Contents:
    """Return what of `full` fits into the tables and columns of `to`."""
    return {
        name: sorted(({column: row[column] for column in rows[0]} for row in full[name]), key=repr)
        for name, rows in to.items()
    }


def schema(address: str) -> dict[str, Any]:
    """Return the columns and indexes of each table."""
    with blocking_engine(address).begin() as connection:
        inspector = inspect(connection)
        return {
            table: (
                sorted((column["name"], str(column["type"])) for column in inspector.get_columns(table)),
                sorted((str(index["name"]), tuple(index["column_names"])) for index in inspector.get_indexes(table)),
            )
            for table in inspector.get_table_names()
        }


@pytest.mark.anyio
@pytest.mark.postgres
async def test_a_restored_backup_serves_what_it_held_and_goes_on_from_there(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_database(server, "kept") as address, ObjectStore() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        migrations.upgrade(address)
        plane = ControlPlane(database=address, home=tmp_path, blobs=open_storage(bucket.uri("state")))
        ended = await plane.submit(labels={"team": "vision"})
        await plane.step_until(ended, State.SUCCEEDED)
        plane.blobs.write(trial_key(ended, "t0000", "encoder.zip"), b"a bundle")
        running = await plane.submit()
        await plane.step_until(running, State.RUNNING)
        queued = await plane.submit()
        told, records = await answers(plane, ended, running, queued), copy.deepcopy(plane.tracking.runs)

        # The order of the guide: databases first, the bucket second.
        dump_database(address, tmp_path / "simclr.dump")
        bucket.back_up()
        await plane.step_until(running, State.SUCCEEDED)
        late = await plane.submit()
        await plane.store.delete(ended)
        plane.blobs.delete(trial_key(ended, "t0000", "encoder.zip"))
        await plane.store.close()

        restore_database(address, tmp_path / "simclr.dump")
        bucket.restore()
        migrations.check(address)
        # With another cluster: its nodes were replaced.
        restored = ControlPlane(database=address, home=tmp_path, blobs=open_storage(bucket.uri("state")))
        restored.tracking.runs = records
        try:
            assert await answers(restored, ended, running, queued) == told
            assert (await get(restored, f"/experiments/{late}")).status_code == 404
            assert (await get(restored, f"/experiments/{ended}/encoder")).content == b"a bundle"
            for experiment_id, attempt in ((running, 2), (queued, 1)):
                assert (await restored.step_until(experiment_id, State.SUCCEEDED)).attempt == attempt
            assert await restored.states(running) == [
                *("queued", "starting", "running"),
                *("recovering", "running", "succeeded"),
            ]
        finally:
            await restored.store.close()


async def answers(plane: ControlPlane, *ids: str) -> list[Any]:
    """Return what a client is told of these experiments."""
    paths = ["/experiments", *(f"/experiments/{id_}{part}" for id_ in ids for part in ("", "/trials", "/timeline"))]
    found = [await get(plane, path) for path in paths]
    assert {answer.status_code for answer in found} == {200}
    return [answer.json() for answer in found] + [await plane.store.events(after=0)]


async def get(plane: ControlPlane, path: str) -> httpx2.Response:
    app = create_app(
        settings=plane.settings, store=plane.store, cluster=plane.cluster, tracking=plane.tracking, blobs=plane.blobs
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000") as http:
        return await http.get(path)

"""Migrations: from nothing to the tables of the code and back, and refusals with a way out."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from typer.testing import CliRunner

from service.cli.app import app
from service.errors import SettingsError, StoreUnavailable
from service.store import SqlStore, migrations
from service.store.database import blocking_engine
from service.store.tables import metadata


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new folder' / 'simclr 100%.db'}"


def file_of(address: str) -> str:
    return address.removeprefix("sqlite:///")


def set_revision(address: str, revision: str) -> None:
    connection = sqlite3.connect(file_of(address))
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_an_upgrade_makes_the_tables_of_the_code(address: str) -> None:
    migrations.upgrade(address)
    assert migrations.current(address) == migrations.head()
    with blocking_engine(address).begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_an_upgrade_can_be_repeated(address: str) -> None:
    migrations.upgrade(address)
    migrations.upgrade(address)
    migrations.check(address)


def test_a_downgrade_leaves_nothing_and_can_be_undone(address: str) -> None:
    migrations.upgrade(address)
    migrations.downgrade(address, "base")
    assert migrations.current(address) is None
    connection = sqlite3.connect(file_of(address))
    assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [
        ("alembic_version",)
    ]
    connection.close()
    migrations.upgrade(address)
    migrations.check(address)


@pytest.mark.parametrize("revision", ["9999", "-1", "0002"])
def test_there_is_no_way_back_to_what_never_was_or_is_no_older(address: str, revision: str) -> None:
    migrations.upgrade(address, "0002")
    with pytest.raises(SettingsError, match="goes back to 0001"):
        migrations.downgrade(address, revision)
    assert migrations.current(address) == "0002"


@pytest.mark.parametrize(("at", "words"), [(None, "has no tables yet"), ("0001", "0001, the oldest there is")])
def test_where_nothing_is_older_there_is_nothing_to_take_back(address: str, at: str | None, words: str) -> None:
    if at:
        migrations.upgrade(address, at)
    with pytest.raises(SettingsError, match=f"{words}.*nothing to take back"):
        migrations.downgrade(address, "0001")


def test_the_command_line_goes_up_and_back_but_drops_nothing(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_DATABASE_URL", address)
    for words, exit_code, revision in (
        (["upgrade"], 0, migrations.head()),
        (["downgrade", "0001"], 0, "0001"),
        (["downgrade", "0001"], 2, "0001"),
        (["downgrade", "base"], 2, "0001"),
    ):
        assert CliRunner().invoke(app, ["db", *words]).exit_code == exit_code
        assert migrations.current(address) == revision


def test_upgrades_at_once_make_one(address: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrations.upgrade, [address] * 4))
    migrations.check(address)


def test_an_upgrade_that_fails_leaves_nothing_half_made(address: str) -> None:
    migrations.upgrade(address)
    migrations.downgrade(address, "base")
    connection = sqlite3.connect(file_of(address))
    connection.execute("CREATE TABLE tokens (id TEXT)")  # in the way of the last table
    with pytest.raises(StoreUnavailable):
        migrations.upgrade(address)
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    connection.close()
    assert tables == [("alembic_version",), ("tokens",)]
    assert migrations.current(address) is None


def test_opening_an_empty_database_names_the_way_out(address: str) -> None:
    migrations.upgrade(address)
    migrations.downgrade(address, "base")
    with pytest.raises(SettingsError, match="simclr db upgrade"):
        asyncio.run(SqlStore.open(address))


def test_opening_with_an_upgrade_asked_makes_the_database(address: str) -> None:
    async def use() -> None:
        store = await SqlStore.open(address, upgrade=True)
        await store.ping()
        await store.close()
        await (await SqlStore.open(address)).close()

    asyncio.run(use())


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_database_of_a_newer_version_is_refused_and_left_alone(address: str, *, upgrade: bool) -> None:
    migrations.upgrade(address)
    set_revision(address, "9999")
    with pytest.raises(SettingsError, match=f"newer than this version.*simclr db downgrade {migrations.head()}"):
        asyncio.run(SqlStore.open(address, upgrade=upgrade))
    assert migrations.current(address) == "9999"


def test_a_database_that_cannot_be_reached_is_unavailable_and_keeps_its_secrets() -> None:
    address = "postgresql+psycopg://ada:hunter2@127.0.0.1:1/simclr"
    for call in (migrations.upgrade, migrations.check):
        with pytest.raises(StoreUnavailable) as error:
            call(address)
        assert not any(secret in str(error.value) for secret in ("hunter2", "127.0.0.1", "ada"))
        assert error.value.__cause__ is not None

"""Connections: what is refused, what is out of reach, and what a transaction leaves behind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError

from service.errors import SettingsError, StoreUnavailable
from service.store.checkpoints import COMMITS_BETWEEN
from service.store.database import Database

Use = Callable[[Database], Awaitable[Any]]


def used(address: str, use: Use, *, wait_s: float = 60.0) -> Any:
    """Use a database and close it; every connection's thread must end by that."""
    before = set(threading.enumerate())

    async def run() -> Any:
        database = Database(address, wait_s=wait_s)
        try:
            return await use(database)
        finally:
            await database.close()
            of_connections = {each for each in set(threading.enumerate()) - before if each.name.startswith("database")}
            for thread in of_connections:
                await asyncio.to_thread(thread.join, 10)
                assert not thread.is_alive()

    return asyncio.run(run())


@pytest.fixture
def address(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path / 'simclr.db'}"

    def fill(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE parents (id TEXT PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE children (parent TEXT REFERENCES parents (id))"))

    used(address, lambda database: database.write(fill))
    return address


def insert(connection: Connection, *ids: str) -> None:
    for each in ids:
        connection.execute(text("INSERT INTO parents VALUES (:id)"), {"id": each})


def counted(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM parents")).scalar_one())


async def count(database: Database) -> int:
    return await database.read(counted)


@pytest.mark.parametrize(
    "address",
    ["nonsense hunter2", "mysql+aiomysql://ada:hunter2@host/db", "sqlite://", "sqlite:///:memory:"],
)
def test_an_address_of_no_use_is_refused_without_its_secrets(address: str) -> None:
    with pytest.raises(SettingsError, match="SIMCLR_DATABASE_URL") as error:
        Database(address, wait_s=1)
    assert "hunter2" not in str(error.value)


def test_a_server_out_of_reach_is_unavailable_and_its_address_stays_secret() -> None:
    with pytest.raises(StoreUnavailable) as error:
        used("postgresql+psycopg://ada:hunter2@127.0.0.1:1/simclr", count)
    assert not any(secret in str(error.value) for secret in ("hunter2", "127.0.0.1", "ada"))
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "simclr.db"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(StoreUnavailable):
        used(f"sqlite:///{path}", count)


def test_a_full_disk_is_unavailable_and_what_was_stored_stays(address: str) -> None:
    def fill(connection: Connection) -> None:
        insert(connection, "a")
        num_pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count = {num_pages}"))

    async def use(database: Database) -> int:
        await database.write(fill)
        with pytest.raises(StoreUnavailable):
            await database.write(
                lambda connection: connection.execute(text("INSERT INTO parents VALUES (zeroblob(1000000))"))
            )
        return await count(database)

    assert used(address, use) == 1


def test_an_error_undoes_the_transaction_and_passes_as_it_is(address: str) -> None:
    async def use(database: Database) -> int:
        with pytest.raises(IntegrityError):
            await database.write(insert, "a", "a")
        return await count(database)

    assert used(address, use) == 0


def test_foreign_keys_hold(address: str) -> None:
    orphan = text("INSERT INTO children VALUES ('nobody')")
    with pytest.raises(IntegrityError):
        used(address, lambda database: database.write(lambda connection: connection.execute(orphan)))


def test_commits_are_synced_to_disk_in_a_log_beside_the_file(address: str) -> None:
    def pragmas(connection: Connection) -> tuple[Any, Any]:
        journal = connection.execute(text("PRAGMA journal_mode")).scalar_one()
        return journal, connection.execute(text("PRAGMA synchronous")).scalar_one()

    assert used(address, lambda database: database.write(pragmas)) == ("wal", 2)


def test_who_comes_first_waits_for_others_on_the_way_into_the_log(address: str) -> None:
    path = address.removeprefix("sqlite:///")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode=DELETE")  # as a backup leaves it, and a first upgrade
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO parents VALUES ('b')")

    async def use(database: Database) -> int:
        writing = asyncio.create_task(database.write(insert, "a"))
        await asyncio.wait([writing], timeout=0.2)
        assert not writing.done()
        other.execute("COMMIT")
        other.close()
        await writing
        return await count(database)

    assert used(address, use, wait_s=10) == 2


def test_writers_queue_where_others_would_find_the_file_locked(address: str) -> None:
    def write(connection: Connection) -> None:
        insert(connection, str(counted(connection)))

    async def use(database: Database) -> int:
        await asyncio.gather(*(database.write(write) for _ in range(40)))
        return await count(database)

    assert used(address, use) == 40


def test_a_reader_sees_one_moment_and_never_waits_for_a_writer(address: str) -> None:
    async def use(database: Database) -> None:
        with database.readers.engine.begin() as reader:
            before = counted(reader)
            with database.writers.engine.begin() as writer:
                insert(writer, "a")
                assert await count(database) == 0
            assert counted(reader) == before
        assert await count(database) == 1

    used(address, use)


def test_a_writer_who_waits_too_long_for_the_others_is_told(address: str) -> None:
    is_over = threading.Event()

    async def use(database: Database) -> None:
        first = asyncio.create_task(database.write(lambda _: is_over.wait(10)))
        await asyncio.sleep(0)  # it is served before the next one asks
        with pytest.raises(StoreUnavailable):
            await database.write(insert, "a")
        is_over.set()
        await first

    used(address, use, wait_s=0.05)


def test_a_caller_who_leaves_keeps_nobody_waiting(address: str) -> None:
    is_over = threading.Event()

    async def use(database: Database) -> int:
        first = asyncio.create_task(database.write(lambda _: is_over.wait(10)))
        await asyncio.sleep(0)
        later = [asyncio.create_task(database.write(insert, each)) for each in "ab"]
        await asyncio.sleep(0)
        first.cancel()
        later[0].cancel()
        is_over.set()
        await asyncio.wait([first, *later])
        return await count(database)

    assert used(address, use) == 1


def test_writes_that_wait_for_a_commit_share_the_next_one(address: str) -> None:
    is_over = threading.Event()
    commits: list[object] = []

    async def use(database: Database) -> int:
        event.listen(database.writers.engine, "commit", commits.append)
        first = asyncio.create_task(database.write(lambda _: is_over.wait(10)))
        await asyncio.sleep(0)
        later = [asyncio.create_task(database.write(insert, each)) for each in "abc"]
        await asyncio.sleep(0)
        is_over.set()
        await asyncio.gather(first, *later)
        return await count(database)

    assert used(address, use) == 3
    assert len(commits) == 2


def test_of_writes_that_share_a_commit_one_that_fails_undoes_itself_alone(address: str) -> None:
    is_over = threading.Event()

    async def use(database: Database) -> int:
        first = asyncio.create_task(database.write(lambda _: is_over.wait(10)))
        await asyncio.sleep(0)
        later = [asyncio.create_task(database.write(insert, *ids)) for ids in ("a", "bb", "c")]
        await asyncio.sleep(0)
        is_over.set()
        _, *answers = await asyncio.gather(first, *later, return_exceptions=True)
        assert [type(answer) for answer in answers] == [type(None), IntegrityError, type(None)]
        return await count(database)

    assert used(address, use) == 2


def test_who_waits_is_served_before_the_database_closes(address: str) -> None:
    is_over = threading.Event()

    async def close(database: Database) -> None:
        first = asyncio.create_task(database.write(lambda _: is_over.wait(10)))
        await asyncio.sleep(0)
        later = asyncio.create_task(database.write(insert, "a"))
        await asyncio.sleep(0)
        is_over.set()
        await database.close()
        await asyncio.gather(first, later)

    used(address, close)
    assert used(address, count) == 1


def test_what_was_committed_is_moved_from_the_log_into_the_file_beside_the_writer(address: str) -> None:
    path = Path(address.removeprefix("sqlite:///"))
    size_bytes = path.stat().st_size

    async def use(database: Database) -> int:
        for number in range(2 * COMMITS_BETWEEN):
            await database.write(insert, f"{number:01000}")
        assert database._checkpoints is not None
        await database._checkpoints.close()
        return await asyncio.to_thread(lambda: path.stat().st_size)

    assert used(address, use) > size_bytes

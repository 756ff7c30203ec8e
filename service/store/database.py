"""Connections to the database: SQLite embedded, PostgreSQL in a cluster; the one home of their tuning."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from sqlalchemy import URL, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.errors import SettingsError, StoreUnavailable

__all__ = ["Database", "blocking_engine", "unreachable_is_unavailable"]

_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
# Statements that the database understood and refused: faults of this program, not of the database.
_REFUSALS: Final = (DataError, IntegrityError, NotSupportedError, ProgrammingError)

# What a 202 has accepted must outlive a power cut. In WAL mode NORMAL keeps the file sound but may
# lose the last commits; FULL syncs the log at each commit, a few milliseconds at most.
_SQLITE_PRAGMAS: Final = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864")
_SQLITE_FILE: Final = ("auto_vacuum=INCREMENTAL",)  # heard only before the first table is made
_READERS: Final = 4
_POSTGRESQL_CONNECTIONS: Final = 20


class Database:
    """The engines of one database; nothing connects before the first transaction.

    Args:
        address: SQLAlchemy address with an async driver. An in-memory SQLite cannot be shared by
            connections and is refused.
        wait_s: How long a transaction waits for a connection and for another's lock, in seconds.

    Raises:
        SettingsError: If the address is no SQLite file or PostgreSQL server.
    """

    def __init__(self, address: str, *, wait_s: float) -> None:
        url = _checked(address)
        if url.get_backend_name() == "sqlite":
            # One connection for all writers: they queue in order of arrival, in its pool. SQLite's
            # own waiting is a lottery of growing sleeps; it is left for other processes.
            self._writer = _sqlite_engine(url, wait_s=wait_s, begin="BEGIN IMMEDIATE", pool_size=1)
            self._reader = _sqlite_engine(url, wait_s=wait_s, begin="BEGIN", pool_size=_READERS)
        else:
            self._writer = self._reader = _postgresql_engine(url, wait_s=wait_s)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that writes nothing. Raises StoreUnavailable."""
        with unreachable_is_unavailable():
            async with self._reader.begin() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that is committed at the end, or undone by an error. Raises StoreUnavailable."""
        with unreachable_is_unavailable():
            async with self._writer.begin() as connection:
                yield connection

    async def tidy(self) -> None:
        """Give a file's unused pages back and refresh what the planner knows; a server does both by itself."""
        if self._writer.dialect.name == "sqlite":
            async with self.write() as connection:
                for pragma in ("incremental_vacuum", "optimize"):
                    (await connection.exec_driver_sql(f"PRAGMA {pragma}")).close()

    async def close(self) -> None:
        """Release connections."""
        await self._writer.dispose()
        await self._reader.dispose()


def blocking_engine(address: str) -> Engine:
    """Return an unpooled engine without asyncio, whose transactions exclude other writers (for migrations)."""
    url = _checked(address)
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    engine = create_engine(url.set(drivername="sqlite"), poolclass=NullPool)
    _begin_explicitly(engine, begin="BEGIN IMMEDIATE", pragmas=_SQLITE_FILE)
    return engine


@contextmanager
def unreachable_is_unavailable() -> Iterator[None]:
    """Raise StoreUnavailable where the database is out of reach, locked, full or broken."""
    try:
        yield
    except _REFUSALS:
        raise
    except (DBAPIError, PoolTimeout, OSError) as error:
        raise StoreUnavailable("The database does not answer; try again later.") from error


def _checked(address: str) -> URL:
    try:
        url = make_url(address)
    except ArgumentError:
        # The cause may quote the address, and with it a password.
        raise SettingsError("SIMCLR_DATABASE_URL is no database address.", variable="SIMCLR_DATABASE_URL") from None
    if _DRIVERS.get(url.get_backend_name()) != url.drivername:
        raise SettingsError(
            f"SIMCLR_DATABASE_URL names {url.drivername!r}; use sqlite:/// with a path or postgresql://.",
            variable="SIMCLR_DATABASE_URL",
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise SettingsError("SIMCLR_DATABASE_URL names no file.", variable="SIMCLR_DATABASE_URL")
    return url


def _sqlite_engine(url: URL, *, wait_s: float, begin: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=pool_size, max_overflow=0, pool_timeout=wait_s, connect_args={"timeout": wait_s}
    )
    _begin_explicitly(engine.sync_engine, begin=begin, pragmas=_SQLITE_PRAGMAS)
    return engine


def _begin_explicitly(engine: Engine, *, begin: str, pragmas: tuple[str, ...]) -> None:
    """Let `begin` alone open transactions: the driver's own come late and never cover DDL."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        try:
            cursor = connection.cursor()
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except BaseException:
            connection.close()  # nobody else will, and it holds a thread
            raise

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _postgresql_engine(url: URL, *, wait_s: float) -> AsyncEngine:
    defaults = {
        "application_name": "simclr",
        "connect_timeout": 5,
        "tcp_user_timeout": 15_000,  # ms: a server that vanished without a word
        "options": f"-c statement_timeout=15s -c lock_timeout={int(wait_s * 1000)}ms",
    }
    return create_async_engine(
        url,
        pool_size=_POSTGRESQL_CONNECTIONS,
        max_overflow=0,
        pool_timeout=wait_s,
        pool_pre_ping=True,
        connect_args={name: value for name, value in defaults.items() if name not in url.query},
    )

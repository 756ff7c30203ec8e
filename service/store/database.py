"""Connections to the database: SQLite embedded, PostgreSQL in a cluster; the one home of their tuning."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from service.errors import SettingsError
from service.store.checkpoints import Checkpoints
from service.store.connections import Connections
from service.store.single_writer import SingleWriter

__all__ = ["Database", "blocking_engine"]

Given = ParamSpec("Given")
Result = TypeVar("Result")
Work = Callable[Concatenate[Connection, Given], Result]

_DRIVERS: Final = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
# What a 202 has accepted must outlive a power cut. In WAL mode NORMAL keeps the file sound but may
# lose the last commits; FULL syncs the log at each commit, a few milliseconds at most.
_SQLITE_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "wal_autocheckpoint=16384",  # pages, 64 MiB: long before, `Checkpoints` has moved most of it
    "journal_size_limit=67108864",
)
_SQLITE_FILE: Final = ("auto_vacuum=INCREMENTAL",)  # heard only before the first table is made
_UPGRADES_WAIT_S: Final = 5.0
_BETWEEN_TRIES_S: Final = 0.01
_READERS: Final = 4
_POSTGRESQL_CONNECTIONS: Final = 20
_SERVERS_GRACE_S: Final = 1.0  # a server that lives gives up in half of it, and says so


class Database:
    """The engines of one database; nothing connects before the first transaction.

    A transaction is a function of a connection that runs whole in a thread: one change of threads
    for all its statements. It is called once, or again after it was undone, so it does nothing but
    use its connection. A caller who is cancelled before it began is forgotten; later it runs on and
    may yet commit, as a connection that breaks before the answer has always left it open: a client
    that must know asks again, with the same Idempotency-Key.

    Args:
        address: SQLAlchemy address. An in-memory SQLite cannot be shared by connections and is refused.
        wait_s: How long a transaction waits for a connection and for another's lock, in seconds. A
            server has little longer to answer at all; one that was frozen is silent and keeps nobody.

    Raises:
        SettingsError: If the address is no SQLite file or PostgreSQL server.
    """

    def __init__(self, address: str, *, wait_s: float) -> None:
        url = _checked(address)
        if url.get_backend_name() == "sqlite":
            # One connection for all writers: they queue in order of arrival. SQLite's own waiting
            # is a lottery of growing sleeps; it is left for other processes.
            writer = _sqlite_engine(url, wait_s=wait_s, begin="BEGIN IMMEDIATE", num_connections=1)
            reader = _sqlite_engine(url, wait_s=wait_s, begin="BEGIN", num_connections=_READERS)
            self._checkpoints: Checkpoints | None = Checkpoints(
                _sqlite_engine(url, wait_s=wait_s, begin="BEGIN", num_connections=1)
            )
            self.writers: SingleWriter | Connections = SingleWriter(
                writer, wait_s=wait_s, on_commit=self._checkpoints.count_commit
            )
            self.readers = Connections(reader, number=_READERS, wait_s=wait_s)
        else:
            self._checkpoints = None
            answer_s = wait_s + _SERVERS_GRACE_S
            server = _postgresql_engine(url, wait_s=wait_s, answer_s=answer_s)
            self.writers = self.readers = Connections(
                server, number=_POSTGRESQL_CONNECTIONS, wait_s=wait_s, answer_s=answer_s
            )

    async def read(self, work: Work[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Return `work(connection, ...)` of a transaction that writes nothing. Raises StoreUnavailable."""
        return await self.readers.run(lambda connection: work(connection, *args, **kwargs))

    async def write(self, work: Work[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Return `work(connection, ...)`, committed by then; an error undoes it. Raises StoreUnavailable."""
        return await self.writers.run(lambda connection: work(connection, *args, **kwargs))

    async def tidy(self) -> None:
        """Give a file's unused pages back and refresh what the planner knows; a server does both by itself."""
        if self.writers.engine.dialect.name == "sqlite":
            await self.read(_tidy)

    async def close(self) -> None:
        """Release connections and threads, once the transactions under way have ended."""
        await asyncio.gather(self.writers.close(), self.readers.close())
        if self._checkpoints is not None:
            await self._checkpoints.close()


def _tidy(connection: Connection) -> None:
    # A script, because it runs to its end: as a statement the first gives back one page and stops.
    script = "PRAGMA incremental_vacuum; PRAGMA optimize;"
    connection.connection.cursor().executescript(script)


def blocking_engine(address: str) -> Engine:
    """Return an unpooled engine whose transactions exclude other writers (for migrations)."""
    url = _checked(address)
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    engine = create_engine(url, poolclass=NullPool)
    _begin_explicitly(engine, begin="BEGIN IMMEDIATE", pragmas=_SQLITE_FILE, wait_s=_UPGRADES_WAIT_S)
    return engine


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


def _sqlite_engine(url: URL, *, wait_s: float, begin: str, num_connections: int) -> Engine:
    engine = create_engine(
        url, pool_size=num_connections, max_overflow=0, pool_timeout=wait_s, connect_args={"timeout": wait_s}
    )
    _begin_explicitly(engine, begin=begin, pragmas=_SQLITE_PRAGMAS, wait_s=wait_s)
    return engine


def _begin_explicitly(engine: Engine, *, begin: str, pragmas: tuple[str, ...], wait_s: float) -> None:
    """Let `begin` alone open transactions: the driver's own come late and never cover DDL."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        try:
            cursor = connection.cursor()
            for pragma in pragmas:
                _set(cursor, pragma, until_s=time.monotonic() + wait_s)
            cursor.close()
        except BaseException:
            connection.close()  # nobody else will
            raise

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _set(cursor: Any, pragma: str, *, until_s: float) -> None:
    """Set one pragma. SQLite waits for no lock on the way into WAL mode: of the first connections all but one fail."""
    while True:
        try:
            cursor.execute(f"PRAGMA {pragma}")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                raise
            time.sleep(_BETWEEN_TRIES_S)  # in a connection's own thread
        else:
            return


def _postgresql_engine(url: URL, *, wait_s: float, answer_s: float) -> Engine:
    from service.store.impatient_connection import limit_silence  # the driver: not for those who use a file

    statement_ms = int((wait_s + _SERVERS_GRACE_S / 2) * 1000)
    defaults = {
        "application_name": "simclr",
        "connect_timeout": int(answer_s) + 1,
        "tcp_user_timeout": 15_000,  # ms: a server that vanished without a word
        "options": f"-c statement_timeout={statement_ms}ms -c lock_timeout={int(wait_s * 1000)}ms",
    }
    engine = create_engine(
        url,
        pool_size=_POSTGRESQL_CONNECTIONS,
        max_overflow=0,
        pool_timeout=wait_s,
        pool_pre_ping=True,
        connect_args={name: value for name, value in defaults.items() if name not in url.query},
    )
    limit_silence(engine, answer_s)
    return engine

"""A private PostgreSQL server for tests: its own folder, a Unix socket only, stopped by its own process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
import psycopg

__all__ = ["PostgresServer", "binaries", "dump_database", "fresh_database", "restore_database"]

DEADLINE_S: Final = 30.0


def binaries() -> Path:
    """Return the folder of initdb and postgres. Raises FileNotFoundError that says how to get them."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    for folder in [*debian, *([Path(on_path).resolve().parent] if on_path else [])]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise FileNotFoundError("no PostgreSQL server on this machine: apt-get install postgresql")


class PostgresServer:
    """A server that lives as long as the `with` block; `stop` and `start` in it, or `frozen`, make an outage."""

    def __init__(self) -> None:
        self._binaries = binaries()
        # Not under pytest's own folder: that is closed to user postgres, and too deep for a socket.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # The server refuses to run as root.
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        command = [str(self._binaries / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "trust", "-N"]
        # A human order of words by default, as most hosts have it: unlike SQLite's order of bytes.
        command += ["-E", "UTF8", "--locale-provider", "icu", "--icu-locale", "en", "--locale", "C.UTF-8"]
        subprocess.run(command, check=True, cwd=self._folder, stdout=subprocess.DEVNULL, **self._as_user)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def address(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy address of a database of this server."""
        return f"postgresql+psycopg://postgres@/{database}?host={self._folder}"

    def execute(self, *statements: str) -> None:
        """Run statements outside a transaction, in the server's own database."""
        with psycopg.connect(host=str(self._folder), user="postgres", autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-k", str(self._folder)]
        command += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]
        with (self._folder / "server.log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, **self._as_user
            )
        self._process = process
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)  # between two looks, bounded by the deadline

    def stop(self) -> None:
        """Stop at once, cutting off whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            self._process.wait(DEADLINE_S)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend every process of the server for the `with` block: it takes connections and never answers."""
        assert self._process is not None
        # Not killpg: each backend leads a session of its own. The postmaster first, or it makes more.
        processes = [postmaster := psutil.Process(self._process.pid)]
        postmaster.suspend()
        processes += postmaster.children(recursive=True)
        for process in processes[1:]:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(processes):
                process.resume()


@contextmanager
def fresh_database(server: PostgresServer, name: str) -> Iterator[str]:
    """Make an empty database for the `with` block and give its address."""
    server.execute(f"CREATE DATABASE {name}")
    try:
        yield server.address(name)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def dump_database(address: str, file: Path) -> None:
    """Back a database up, in the words of docs/operations.md."""
    _tool("pg_dump", "--format=custom", "--dbname", _libpq(address), "--file", str(file))


def restore_database(address: str, file: Path) -> None:
    """Restore it, likewise; who is connected may stay so."""
    restore = ("--clean", "--if-exists", "--single-transaction", "--dbname", _libpq(address))
    _tool("pg_restore", *restore, str(file))


def _tool(name: str, *words: str) -> None:
    """Run a tool of PostgreSQL's, of the server's version."""
    subprocess.run([str(binaries() / name), *words], check=True, timeout=60)


def _libpq(address: str) -> str:
    """Return the address as PostgreSQL's own tools read it."""
    return address.replace("+psycopg", "")

"""Migrations of the database, run from code: no configuration file, no working directory.

They use a blocking connection of their own; call them from a thread where an event loop runs. One
upgrade is one transaction that excludes other writers: it is made whole or not at all, and of two
at once the second finds nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, text

from service.errors import SettingsError
from service.store.connections import unreachable_is_unavailable
from service.store.database import blocking_engine

__all__ = ["check", "current", "downgrade", "head", "upgrade"]

_UPGRADE_LOCK: Final = 0x53494D434C52  # an arbitrary number that all upgrades of this service share


def head() -> str:
    """Return the newest revision this version of the service knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None, "the package holds its migrations"  # noqa: S101 - shipped data
    return revision


def current(database_address: str) -> str | None:
    """Return the revision of a database, None where it is empty. Raises StoreUnavailable."""
    with _connection(database_address) as connection:
        return _revision(connection)


def check(database_address: str) -> None:
    """Return where the database is at `head`. Raises SettingsError with the way out, StoreUnavailable."""
    revision = current(database_address)
    _require_known(revision)
    if revision != head():
        raise SettingsError(
            f"The database is at revision {revision or 'none'}, this version needs {head()}: run `simclr db upgrade`.",
            revision=revision,
            required=head(),
        )


def upgrade(database_address: str, revision: str = "head") -> None:
    """Bring a database to `revision`, creating its file and folder if need be.

    Raises:
        SettingsError: If the database is of a newer version of the service.
        StoreUnavailable: If it cannot be reached.
    """
    _run(command.upgrade, database_address, revision)


def downgrade(database_address: str, revision: str) -> None:
    """Take a database back to an older `revision`, with all that its tables can hold (`base`: to nothing).

    Raises:
        SettingsError: If the database is of a newer version, or none that `revision` came before.
        StoreUnavailable: If it cannot be reached.
    """
    _run(command.downgrade, database_address, revision, check=partial(_require_older, revision=revision))


def _run(
    verb: Callable[[Config, str], None],
    database_address: str,
    revision: str,
    *,
    check: Callable[[str | None], None] = lambda _: None,
) -> None:
    _make_folder(database_address)
    with _connection(database_address) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
        found = _revision(connection)
        _require_known(found)
        check(found)
        config = _config()
        config.attributes["connection"] = connection
        verb(config, revision)


@contextmanager
def _connection(database_address: str) -> Iterator[Connection]:
    engine = blocking_engine(database_address)
    with unreachable_is_unavailable(), engine.begin() as connection:
        yield connection


def _make_folder(database_address: str) -> None:
    url = make_url(database_address)
    if url.get_backend_name() == "sqlite" and url.database:
        with unreachable_is_unavailable():
            Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _require_known(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise SettingsError(
            f"The database is at revision {revision}, which is newer than this version knows ({head()}): run the "
            f"version that upgraded it, or take it back with that one's `simclr db downgrade {head()}`.",
            revision=revision,
        )


def _require_older(found: str | None, *, revision: str) -> None:
    scripts = ScriptDirectory.from_config(_config())
    older = [script.revision for script in scripts.iterate_revisions(found, "base")][1:] if found else []
    if revision in (*older, "base"):
        return
    if not older:
        is_where = f"is at revision {found}, the oldest there is" if found else "has no tables yet"
        raise SettingsError(f"The database {is_where}; there is nothing to take back.", revision=found)
    raise SettingsError(
        f"The database is at revision {found}, which goes back to {' or '.join(older)}.", revision=found
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config

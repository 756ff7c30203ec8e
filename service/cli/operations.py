"""Commands of the operator: tokens and the database."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.connection import connect, settings
from service.cli.outcome import outcome
from service.cli.output import AsJson, print_json, print_members

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    token = typer.Typer(no_args_is_help=True, help="Manage access tokens.")
    token.command("create")(create_token)
    database = typer.Typer(no_args_is_help=True, help="Manage the database.")
    database.callback()(_database)
    database.command("upgrade")(upgrade_database)
    database.command("downgrade")(downgrade_database)
    token.callback()(_token)
    app.add_typer(token, name="token")
    app.add_typer(database, name="db")


def _token() -> None:
    """Manage access tokens."""


def _database() -> None:
    """Manage the database."""


def create_token(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    *,
    role: Annotated[str, typer.Option(help="viewer, submitter or admin.")] = "submitter",
    owner: Annotated[
        str | None, typer.Option(help="Whose experiments it makes and sees. Default: its own alone.")
    ] = None,
    expires_at: Annotated[str | None, typer.Option(help="When it expires, such as 2030-01-31T12:00:00Z.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; its secret is shown this once."""
    with outcome(as_json=as_json), connect() as client:
        created = client.create_token(name=name, role=role, owner=owner, expires_at=expires_at)
        (print_json if as_json else print_members)(created)


def upgrade_database(*, as_json: AsJson = False) -> None:
    """Bring the database (SIMCLR_DATABASE_URL) to this version."""
    with outcome(as_json=as_json):
        from service.store.migrations import current, upgrade

        address = settings().database_address
        upgrade(address)
        (print_json if as_json else print_members)({"revision": current(address)})


def downgrade_database(
    revision: Annotated[str, typer.Argument(help="What the older version knows; it says so when it refuses to start.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Take the database (SIMCLR_DATABASE_URL) back to what an older version of the service can use."""
    with outcome(as_json=as_json):
        from service.errors import SettingsError
        from service.store.migrations import current, downgrade

        if revision == "base":
            raise SettingsError("base is no version, and would drop everything; to do that, drop the database.")
        address = settings().database_address
        downgrade(address, revision)
        (print_json if as_json else print_members)({"revision": current(address)})

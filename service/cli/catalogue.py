"""Commands about what can be asked for: studies."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.connection import connect
from service.cli.outcome import outcome
from service.cli.output import AsJson, print_json, print_members, print_table

__all__ = ["register"]

Name = Annotated[str | None, typer.Argument(help="Show this one in full.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(studies)


def studies(name: Name = None, *, as_json: AsJson = False) -> None:
    """Show the catalogue of studies."""
    with outcome(as_json=as_json), connect() as client:
        if name is not None:
            (print_json if as_json else print_members)(client.study(name))
        elif as_json:
            print_json(list(client.studies()))
        else:
            print_table(client.studies(), ("name", "description"))

"""What a command prints: one JSON document for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["AsJson", "error_console", "number", "plain", "print_json", "print_members", "print_table"]

_PIPE_WIDTH: Final = 1000

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def error_console() -> Console:
    """Return the console for what is no result."""
    return Console(stderr=True, highlight=False)


def plain(value: object) -> Text:
    """Return text that nothing in it can colour, link, or move the cursor with."""
    text = "" if value is None else str(value)
    return Text("".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text))


def print_json(document: Any) -> None:
    """Print one document."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def print_table(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Print the named members of each row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain(number(row.get(column))) for column in columns))
    _console().print(table)


def print_members(members: Mapping[str, object]) -> None:
    """Print a document as a list of its members, nested ones as JSON."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in members.items():
        is_nested = isinstance(value, dict | list)
        table.add_row(Text(name, style="bold"), plain(json.dumps(value) if is_nested else number(value)))
    _console().print(table)


def _console() -> Console:
    # What is piped is read by programs such as grep: one row a line, nothing folded.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def number(value: object) -> object:
    """Return a float to four places, anything else as it is."""
    return f"{value:.4f}" if isinstance(value, float) else value

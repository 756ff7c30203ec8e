"""Connections to PostgreSQL that wait so long for an answer and no longer.

The server's own limits (`statement_timeout`) need a server that runs. One that was frozen, or whose
host was, still acknowledges every byte and says nothing, so the client has to keep the time.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event

__all__ = ["limit_silence"]

Result = TypeVar("Result")


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that is given up where the server leaves a statement unanswered for `silence_s`."""

    silence_s: float | None = None

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Return what `gen` returns. Raises psycopg.OperationalError after `silence_s` without it."""
        try:
            return super().wait(gen, interval, self.silence_s if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status is TransactionStatus.ACTIVE:
                self.close()  # the answer may come yet, and must not be taken for that to another statement
            raise


def limit_silence(engine: Engine, silence_s: float) -> None:
    """Let every connection that `engine` makes be impatient."""

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: object, _record: object, arguments: list[Any], named: dict[str, Any]) -> ImpatientConnection:
        connection = ImpatientConnection.connect(*arguments, **named)
        connection.silence_s = silence_s
        return connection

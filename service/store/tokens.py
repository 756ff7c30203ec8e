"""Stored tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from service.errors import TokenNotFound
from service.ports import Role, TokenRecord
from service.store.tables import tokens

__all__ = ["create", "every", "find", "revoke"]

_FIELDS: Final = [field.name for field in fields(TokenRecord)]
# Built once: every request asks one of these.
_EVERY: Final = select(*(tokens.c[name] for name in _FIELDS))
_FIND: Final = _EVERY.where(tokens.c.secret_sha256 == bindparam("secret_sha256"))
_NEWEST_FIRST: Final = _EVERY.order_by(tokens.c.created_at.desc(), tokens.c.id.desc())


def create(connection: Connection, token: TokenRecord, secret_sha256: str) -> None:
    """Store a token under the digest of its secret."""
    values = {name: getattr(token, name) for name in _FIELDS}
    connection.execute(insert(tokens).values(**values, secret_sha256=secret_sha256))


def find(connection: Connection, secret_sha256: str) -> TokenRecord | None:
    """Return the token of this secret, revoked and expired ones included."""
    row = connection.execute(_FIND, {"secret_sha256": secret_sha256}).one_or_none()
    return None if row is None else _record(row)


def every(connection: Connection) -> Sequence[TokenRecord]:
    """Return all tokens, newest first."""
    return [_record(row) for row in connection.execute(_NEWEST_FIRST)]


def revoke(connection: Connection, token_id: str, *, at: datetime) -> None:
    """Mark a token revoked, keeping the time of the first call. Raises TokenNotFound."""
    statement = update(tokens).where(tokens.c.id == token_id).values(revoked_at=func.coalesce(tokens.c.revoked_at, at))
    if connection.execute(statement).rowcount == 0:
        raise TokenNotFound(f"There is no token {token_id}.", token_id=token_id)


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord(**{**row._mapping, "role": Role(row.role)})  # noqa: SLF001 - public, named so by SQLAlchemy

"""The tables of the database, as they are at the newest migration.

experiments        what was asked, and where it stands
experiment_labels  an index over `experiments.labels`, for filters, with what pages are ordered by
events             the story; `sequence` is drawn from `event_counter`
idempotency_keys   which key made which experiment
tokens             who may do what; digests of secrets only
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.types import TypeEngine

__all__ = [
    "Instant",
    "Json",
    "event_counter",
    "events",
    "experiment_labels",
    "experiments",
    "idempotency_keys",
    "metadata",
    "tokens",
]


class Instant(TypeDecorator[datetime]):
    """An aware UTC time: `timestamptz` in PostgreSQL, sortable ISO 8601 text of fixed width in SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of this database."""
        return dialect.type_descriptor(String(32) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Return what is stored. Raises ValueError for a naive time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        value = value.astimezone(UTC)
        return value.isoformat(timespec="microseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return the time. Raises ValueError or TypeError where the text is none."""
        if value is None:
            return None
        return (datetime.fromisoformat(value) if dialect.name == "sqlite" else value).astimezone(UTC)


class Json(TypeDecorator[Any]):
    """A JSON object or array kept as text, so that numbers come back to the digit.

    Args:
        shape: `dict` or `list`; a stored document of another shape cannot be read.
    """

    impl = Text
    cache_ok = True

    def __init__(self, shape: type = dict) -> None:
        super().__init__()
        self.shape = shape

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - the base's signature
        """Return the text. Raises ValueError for NaN and infinities."""
        return None if value is None else json.dumps(self.shape(value), allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002 - the base's signature
        """Return the document. Raises ValueError where the text is none, or of another shape."""
        if value is None:
            return None
        document = json.loads(value)
        if not isinstance(document, self.shape):
            raise ValueError(f"a stored document is {type(document).__name__}, not {self.shape.__name__}")  # noqa: TRY004 - a wrong value, not a wrong call
        return document


# Byte order everywhere: PostgreSQL's default collation differs between hosts and from SQLite's.
Words: Final = String().with_variant(String(collation="C"), "postgresql")

metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

experiments: Final = Table(
    "experiments",
    metadata,
    Column("id", Words, primary_key=True),
    Column("name", Words, nullable=False),
    Column("kind", Words, nullable=False),
    Column("owner", Words, nullable=False),
    Column("labels", Json(), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("request", Json(), nullable=False),
    Column("spec", Json(), nullable=False),
    Column("spec_digest", Words, nullable=False),
    Column("plan", Json(), nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("wall_time_s", Integer, nullable=False),
    Column("parent", Json()),
    Column("state", Words, nullable=False),
    Column("reason", Json()),
    Column("conditions", Json(list), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("not_before", Instant),
    Column("claim", Words),
    Column("claimed_until", Instant),
    Index("ix_experiments_queue", "state", "owner", "priority", "created_at", "id"),
    # A page walks one of these from the position it is given: the owner if one is asked for, a
    # filter, the order, the tie break. Under a name the order of names is that of ids.
    *(
        Index("ix_experiments_" + "_".join((*scope, *walk)), *scope, *walk, "id")
        for scope in ((), ("owner",))
        for filters in ((), ("state",), ("kind",), ("name",))
        for order in ("created_at", "name", "priority")
        for walk in [(*filters, order)]
        if walk != ("name", "name")
    ),
)

experiment_labels: Final = Table(
    "experiment_labels",
    metadata,
    Column("experiment_id", ForeignKey(experiments.c.id, ondelete="CASCADE"), primary_key=True),
    Column("key", Words, primary_key=True),
    Column("value", Words, nullable=False),
    # As in the experiment, so that a page under a label is one walk as well. All but the priority
    # stay as they were made; that one follows by a trigger (migration 0004).
    Column("created_at", Instant, nullable=False),
    Column("owner", Words),
    Column("name", Words),
    Column("priority", Integer),
    *(
        Index("ix_experiment_labels_" + "_".join((*scope, order)), *scope, "key", "value", order, "experiment_id")
        for scope in ((), ("owner",))
        for order in ("created_at", "name", "priority")
    ),
)

events: Final = Table(
    "events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("experiment_id", ForeignKey(experiments.c.id, ondelete="CASCADE"), nullable=False),
    Column("type", Words, nullable=False),
    Column("data", Json(), nullable=False),
    Column("at", Instant, nullable=False),
    Index("ix_events_experiment_id_sequence", "experiment_id", "sequence"),
)

event_counter: Final = Table("event_counter", metadata, Column("value", BigInteger, nullable=False))

idempotency_keys: Final = Table(
    "idempotency_keys",
    metadata,
    Column("owner", Words, primary_key=True),
    Column("route", Words, primary_key=True),
    Column("key", Words, primary_key=True),
    Column("body_sha256", Words, nullable=False),
    # Checked at commit: the key is taken first, and only its winner goes on to the experiment.
    Column(
        "experiment_id",
        ForeignKey(experiments.c.id, ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    Index("ix_idempotency_keys_experiment_id", "experiment_id"),
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column("id", Words, primary_key=True),
    Column("name", Words, nullable=False),
    Column("owner", Words, nullable=False),
    Column("role", Words, nullable=False),
    Column("secret_sha256", Words, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)

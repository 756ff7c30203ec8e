"""The first tables. Types are spelled out: a migration must not change with the code."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WORDS = sa.String().with_variant(sa.String(collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Create everything, and the counter at zero."""
    _create_experiments()
    _create_labels()
    _create_events()
    _create_idempotency_keys()
    _create_tokens()


def downgrade() -> None:
    """Drop everything."""
    for table in ("tokens", "idempotency_keys", "event_counter", "events", "experiment_labels", "experiments"):
        op.drop_table(table)


def _create_experiments() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("spec_digest", WORDS, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("wall_time_s", sa.Integer, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("state", WORDS, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("conditions", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT),
        sa.Column("finished_at", INSTANT),
        sa.Column("not_before", INSTANT),
        sa.Column("claim", WORDS),
        sa.Column("claimed_until", INSTANT),
        sa.PrimaryKeyConstraint("id", name="pk_experiments"),
    )
    for columns in (
        ["created_at"],
        ["name"],
        ["priority"],
        ["state", "created_at"],
        ["kind", "created_at"],
        ["name", "created_at"],
    ):
        op.create_index("ix_experiments_" + "_".join(columns), "experiments", [*columns, "id"])
        op.create_index("ix_experiments_owner_" + "_".join(columns), "experiments", ["owner", *columns, "id"])


def _create_labels() -> None:
    op.create_table(
        "experiment_labels",
        sa.Column("experiment_id", WORDS, nullable=False),
        sa.Column("key", WORDS, nullable=False),
        sa.Column("value", WORDS, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "key", name="pk_experiment_labels"),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name="fk_experiment_labels_experiment_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_experiment_labels_walk", "experiment_labels", ["key", "value", "created_at", "experiment_id"])


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("experiment_id", WORDS, nullable=False),
        sa.Column("type", WORDS, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name="fk_events_experiment_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_events_experiment_id_sequence", "events", ["experiment_id", "sequence"])
    counter = op.create_table("event_counter", sa.Column("value", sa.BigInteger, nullable=False))
    op.bulk_insert(counter, [{"value": 0}])


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("route", WORDS, nullable=False),
        sa.Column("key", WORDS, nullable=False),
        sa.Column("body_sha256", WORDS, nullable=False),
        sa.Column("experiment_id", WORDS, nullable=False),
        sa.PrimaryKeyConstraint("owner", "route", "key", name="pk_idempotency_keys"),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
            name="fk_idempotency_keys_experiment_id",
            ondelete="CASCADE",
            deferrable=True,
            initially="DEFERRED",
        ),
    )
    op.create_index("ix_idempotency_keys_experiment_id", "idempotency_keys", ["experiment_id"])


def _create_tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("role", WORDS, nullable=False),
        sa.Column("secret_sha256", WORDS, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("secret_sha256", name="uq_tokens_secret_sha256"),
    )

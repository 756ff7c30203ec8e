"""An index under the head of the queue: a dispatcher reads it twice a second, however long the queue is."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_experiments_queue", "experiments", ["state", "owner", "priority", "created_at", "id"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_experiments_queue", "experiments")

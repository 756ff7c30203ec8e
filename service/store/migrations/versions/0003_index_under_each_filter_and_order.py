"""An index under each filter in each order, for all experiments and for one owner's: no page sorts what it finds."""

from __future__ import annotations

from typing import Final

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WALKS: Final = (
    ("state", "name"),
    ("state", "priority"),
    ("kind", "name"),
    ("kind", "priority"),
    ("name", "priority"),
)


def upgrade() -> None:
    """Add them."""
    for columns in WALKS:
        op.create_index(_name("", columns), "experiments", [*columns, "id"])
        op.create_index(_name("owner_", columns), "experiments", ["owner", *columns, "id"])


def downgrade() -> None:
    """Drop them."""
    for columns in WALKS:
        op.drop_index(_name("", columns), "experiments")
        op.drop_index(_name("owner_", columns), "experiments")


def _name(scope: str, columns: tuple[str, str]) -> str:
    return f"ix_experiments_{scope}{'_'.join(columns)}"

"""Owner, name and priority beside each label: a page under a label walks an index in every order.

The experiment stays their home. The service writes them with the label; triggers keep them right
where a service of an older version, which knows nothing of them, still serves meanwhile.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WORDS: Final = sa.String().with_variant(sa.String(collation="C"), "postgresql")
COLUMNS: Final[dict[str, Any]] = {"owner": WORDS, "name": WORDS, "priority": sa.Integer}
ORDERS: Final = ("created_at", "name", "priority")
BEFORE: Final = "ix_experiment_labels_walk"

FILL: Final = """
    UPDATE experiment_labels SET (owner, name, priority) =
        (SELECT owner, name, priority FROM experiments WHERE experiments.id = experiment_labels.experiment_id)"""
ADD_TRIGGERS: Final = {
    "sqlite": (
        f"""CREATE TRIGGER experiment_labels_fill AFTER INSERT ON experiment_labels WHEN NEW.owner IS NULL BEGIN
            {FILL} WHERE experiment_id = NEW.experiment_id AND key = NEW.key;
        END""",
        """CREATE TRIGGER experiment_labels_follow AFTER UPDATE OF priority ON experiments
            WHEN NEW.priority <> OLD.priority BEGIN
            UPDATE experiment_labels SET priority = NEW.priority WHERE experiment_id = NEW.id;
        END""",
    ),
    "postgresql": (
        """CREATE FUNCTION experiment_labels_fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            SELECT owner, name, priority INTO NEW.owner, NEW.name, NEW.priority
                FROM experiments WHERE id = NEW.experiment_id;
            RETURN NEW;
        END $$""",
        """CREATE TRIGGER experiment_labels_fill BEFORE INSERT ON experiment_labels
            FOR EACH ROW WHEN (NEW.owner IS NULL) EXECUTE FUNCTION experiment_labels_fill()""",
        """CREATE FUNCTION experiment_labels_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE experiment_labels SET priority = NEW.priority WHERE experiment_id = NEW.id;
            RETURN NULL;
        END $$""",
        """CREATE TRIGGER experiment_labels_follow AFTER UPDATE OF priority ON experiments
            FOR EACH ROW WHEN (NEW.priority <> OLD.priority) EXECUTE FUNCTION experiment_labels_follow()""",
    ),
}
DROP_TRIGGERS: Final = {
    "sqlite": ("DROP TRIGGER experiment_labels_follow", "DROP TRIGGER experiment_labels_fill"),
    "postgresql": (
        "DROP TRIGGER experiment_labels_follow ON experiments",
        "DROP FUNCTION experiment_labels_follow",
        "DROP TRIGGER experiment_labels_fill ON experiment_labels",
        "DROP FUNCTION experiment_labels_fill",
    ),
}


def upgrade() -> None:
    """Add columns, indexes and triggers, and fill the columns of the labels there are."""
    for name, type_ in COLUMNS.items():
        op.add_column("experiment_labels", sa.Column(name, type_))
    op.execute(FILL)
    op.drop_index(BEFORE, "experiment_labels")
    for order in ORDERS:
        op.create_index(f"ix_experiment_labels_{order}", "experiment_labels", _walk(order))
        op.create_index(f"ix_experiment_labels_owner_{order}", "experiment_labels", ["owner", *_walk(order)])
    _execute(ADD_TRIGGERS)


def downgrade() -> None:
    """Drop them."""
    _execute(DROP_TRIGGERS)
    for order in ORDERS:
        op.drop_index(f"ix_experiment_labels_owner_{order}", "experiment_labels")
        op.drop_index(f"ix_experiment_labels_{order}", "experiment_labels")
    op.create_index(BEFORE, "experiment_labels", _walk("created_at"))
    for name in reversed(COLUMNS):
        op.drop_column("experiment_labels", name)


def _walk(order: str) -> list[str]:
    return ["key", "value", order, "experiment_id"]


def _execute(statements: dict[str, tuple[str, ...]]) -> None:
    connection = op.get_bind()
    for statement in statements[connection.dialect.name]:
        connection.exec_driver_sql(statement)

"""Control teachers: what is made from the student, with or without another teacher.

Revision ID: 0005_controls
Revises: 0004_rollout_scores
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_controls"
down_revision = "0004_rollout_scores"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("teacher", recreate="never") as teacher:
        teacher.add_column(
            sa.Column("control", sa.String(20), comment="how it is made; null: its own model")
        )
        # Without a constraint: SQLite cannot add one to a table that others refer to.
        teacher.add_column(
            sa.Column("base_id", sa.String(40), comment="the teacher that a control is of")
        )


def downgrade() -> None:
    # Controls are nothing without their columns.
    op.execute("DELETE FROM teacher WHERE control IS NOT NULL")
    with op.batch_alter_table("teacher", recreate="never") as teacher:
        teacher.drop_column("base_id")
        teacher.drop_column("control")

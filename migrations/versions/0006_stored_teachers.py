"""Stored teachers: what they said was put, and no model runs.

Revision ID: 0006_stored_teachers
Revises: 0005_controls
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_stored_teachers"
down_revision = "0005_controls"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("teacher", recreate="never") as teacher:
        teacher.add_column(
            sa.Column(
                "stored", sa.String(200), comment="where its distributions come from; null: a model"
            )
        )


def downgrade() -> None:
    # They and their controls are nothing without what says so; their distributions stay, unread.
    stored = "(SELECT id FROM teacher WHERE stored IS NOT NULL)"
    op.execute(f"DELETE FROM teacher WHERE base_id IN {stored}")
    op.execute("DELETE FROM teacher WHERE stored IS NOT NULL")
    with op.batch_alter_table("teacher", recreate="never") as teacher:
        teacher.drop_column("stored")

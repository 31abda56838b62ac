"""Growths remember the call that started them: its request id and its trace.

Revision ID: 0010_calls
Revises: 0009_access
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_calls"
down_revision = "0009_access"
branch_labels = None
depends_on = None

COLUMNS = (
    ("call_id", 128, "request id of the call that started it"),
    ("call_trace", 64, "W3C traceparent of that call"),
)


def upgrade() -> None:
    for name, length, comment in COLUMNS:
        with op.batch_alter_table("growth", recreate="never") as change:
            change.add_column(sa.Column(name, sa.String(length), comment=comment))


def downgrade() -> None:
    for name, _, _ in COLUMNS:
        with op.batch_alter_table("growth", recreate="never") as change:
            change.drop_column(name)

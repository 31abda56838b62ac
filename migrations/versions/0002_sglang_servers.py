"""Where models are served, and how a policy's two cuts go together.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# recreate="never": SQLite would copy the table and drop the old one, which the rows that refer to
# it forbid; it can add and drop columns itself.


def upgrade() -> None:
    with op.batch_alter_table("model", recreate="never") as model:
        model.add_column(
            sa.Column(
                "endpoints",
                sa.JSON(),
                nullable=False,
                server_default="[]",
                comment="SGLang servers of it",
            )
        )
        model.add_column(
            sa.Column("serving", sa.JSON(), comment="what they were found to be; null without any")
        )
    with op.batch_alter_table("policy", recreate="never") as policy:
        policy.add_column(
            sa.Column(
                "joint",
                sa.Boolean(),
                nullable=False,
                server_default=sa.false(),
                comment="whether top_p is a share of all, not of what top_k left",
            )
        )


def downgrade() -> None:
    with op.batch_alter_table("policy", recreate="never") as policy:
        policy.drop_column("joint")
    with op.batch_alter_table("model", recreate="never") as model:
        model.drop_column("serving")
        model.drop_column("endpoints")

"""How precise a growth has become, and what more precision would cost.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("growth", recreate="never") as growth:
        growth.add_column(
            sa.Column(
                "nodes_settled",
                sa.Integer(),
                nullable=False,
                server_default="0",
                comment="precise, or flat",
            )
        )
        growth.add_column(
            sa.Column(
                "half_width",
                sa.Float(),
                comment="of the 90% interval of what it makes precise",
            )
        )
        growth.add_column(
            sa.Column(
                "next_halving",
                sa.JSON(),
                comment="rollouts and tokens to halve it: low, median, high",
            )
        )


def downgrade() -> None:
    with op.batch_alter_table("growth", recreate="never") as growth:
        growth.drop_column("next_halving")
        growth.drop_column("half_width")
        growth.drop_column("nodes_settled")

"""What models think of the tokens of rollouts, for losses of whole continuations.

Revision ID: 0004_rollout_scores
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_rollout_scores"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rollout_score",
        sa.Column("rollout_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite")),
        sa.Column("source", sa.LargeBinary(16), comment="hash of a model and its prompt"),
        sa.Column(
            "logprobs", sa.LargeBinary(), nullable=False, comment="float32, of the sampled tokens"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "source", name="pk_rollout_score"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name="fk_rollout_score_rollout_id_rollout"
        ),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("rollout_score")

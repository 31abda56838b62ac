"""Bearer tokens, and what clients had sampled in all.

Revision ID: 0009_access
Revises: 0008_keeping
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009_access"
down_revision = "0008_keeping"
branch_labels = None
depends_on = None

DONE = ("rollouts_done", "tokens_done")
NOW = "Who had what sampled in the last 24 hours, where that is counted."
BEFORE = "Who started the growths of the last 24 hours, where that is counted."


def upgrade() -> None:
    op.create_table(
        "access_token",
        sa.Column("id", sa.String(40), comment="tok-<start of the hash>"),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False, comment="SHA-256 of the token"),
        sa.Column("scope", sa.String(10), nullable=False, comment="read, grow or admin"),
        sa.Column("rollouts_per_day", sa.BigInteger(), comment="budget; null: no limit"),
        sa.Column("tokens_per_day", sa.BigInteger(), comment="budget; null: no limit"),
        sa.Column("rollouts", sa.BigInteger(), comment="budget in all; null: no limit"),
        sa.Column("tokens", sa.BigInteger(), comment="budget in all; null: no limit"),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), comment="null: never"),
        sa.Column("revoked_at", sa.Float(), comment="null: it is not"),
        sa.PrimaryKeyConstraint("id", name="pk_access_token"),
        sa.UniqueConstraint("name", name="uq_access_token_name"),
        sa.UniqueConstraint("hash", name="uq_access_token_hash"),
        comment="Bearer tokens. The tokens themselves are kept nowhere.",
    )
    op.create_table(
        "client_total",
        sa.Column("client", sa.String(200)),
        sa.Column(
            "rollouts", sa.BigInteger(), nullable=False, comment="sampled before `growth_client`"
        ),
        sa.Column(
            "tokens", sa.BigInteger(), nullable=False, comment="sampled before `growth_client`"
        ),
        sa.PrimaryKeyConstraint("client", name="pk_client_total"),
        comment="What clients had sampled more than a day ago.",
    )
    for name in DONE:
        done = sa.Column(name, sa.BigInteger(), comment="sampled; null: as its growth says")
        with op.batch_alter_table("growth_client", recreate="never") as change:
            change.add_column(done)
    comment(NOW, BEFORE)


def downgrade() -> None:
    # Tokens end with their table; so does what was sampled more than a day ago.
    op.execute("DELETE FROM growth_client WHERE rollouts_done IS NOT NULL")
    for name in DONE:
        with op.batch_alter_table("growth_client", recreate="never") as change:
            change.drop_column(name)
    comment(BEFORE, NOW)
    op.drop_table("client_total")
    op.drop_table("access_token")


def comment(text: str, was: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.create_table_comment("growth_client", text, existing_comment=was)

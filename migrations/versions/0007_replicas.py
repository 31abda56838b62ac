"""Growths that share their trees in turns, are paused and extended, and are found by subject.

Revision ID: 0007_replicas
Revises: 0006_stored_teachers
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007_replicas"
down_revision = "0006_stored_teachers"
branch_labels = None
depends_on = None

# Servers keep versions in memory (unmask_server/database/notices.py).
_TELL = """
CREATE FUNCTION unmask_tell_of_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('unmask_tree', NEW.id || ' ' || NEW.version);
    RETURN NULL;
END
$$
"""
_TRIGGER = """
CREATE TRIGGER tell_of_version AFTER UPDATE OF version ON tree FOR EACH ROW
WHEN (OLD.version IS DISTINCT FROM NEW.version) EXECUTE FUNCTION unmask_tell_of_version()
"""


def upgrade() -> None:
    with op.batch_alter_table("growth", recreate="never") as growth:
        growth.add_column(
            sa.Column(
                "asked",
                sa.JSON(),
                comment="the spec that it was started with; null: not extended since",
            )
        )
        growth.add_column(
            sa.Column(
                "revision",
                sa.Integer(),
                nullable=False,
                server_default="0",
                comment="times extended",
            )
        )
        growth.add_column(
            sa.Column(
                "rollouts_counted",
                sa.BigInteger(),
                nullable=False,
                server_default="0",
                comment="there are now",
            )
        )
        growth.add_column(
            sa.Column(
                "turn",
                sa.BigInteger(),
                comment="its place in the line for its trees; null: it is not in it",
            )
        )
        growth.add_column(
            sa.Column(
                "has_turn",
                sa.Boolean(),
                nullable=False,
                server_default=sa.false(),
                comment="samples now",
            )
        )
        growth.add_column(
            sa.Column("waits_for", sa.String(40), comment="the growth whose turn it is")
        )
    subject = op.create_table(
        "growth_subject",
        sa.Column("growth_id", sa.String(40), nullable=False),
        sa.Column("policy_id", sa.String(40), nullable=False),
        sa.Column("question_id", sa.String(40), nullable=False),
        sa.ForeignKeyConstraint(
            ["growth_id"], ["growth.id"], name="fk_growth_subject_growth_id_growth"
        ),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["policy.id"], name="fk_growth_subject_policy_id_policy"
        ),
        sa.ForeignKeyConstraint(
            ["question_id"], ["question.id"], name="fk_growth_subject_question_id_question"
        ),
        sa.PrimaryKeyConstraint("growth_id", "policy_id", "question_id", name="pk_growth_subject"),
        comment="whose trees a growth grows",
    )
    op.create_index(
        "ix_growth_subject_policy_id_question_id", "growth_subject", ["policy_id", "question_id"]
    )
    op.create_index("ix_growth_subject_question_id", "growth_subject", ["question_id"])
    _fill(subject)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_TELL)
        op.execute(_TRIGGER)


def _fill(subject: sa.Table) -> None:
    """Say of the growths that are there what they are about."""
    connection = op.get_bind()
    trajectories = {
        row.id: (row.policy_id, row.question_id)
        for row in connection.execute(sa.text("SELECT id, policy_id, question_id FROM trajectory"))
    }
    growth = sa.table("growth", sa.column("id"), sa.column("spec", sa.JSON()))
    for row in connection.execute(sa.select(growth.c.id, growth.c.spec)).all():
        spec: Any = json.loads(row.spec) if isinstance(row.spec, str) else row.spec
        found = {
            trajectories.get(target["trajectory_id"])
            if target["trajectory_id"]
            else (target["policy_id"], target["question_id"])
            for target in spec["targets"]
        }
        rows = [
            {"growth_id": row.id, "policy_id": pair[0], "question_id": pair[1]}
            for pair in found
            if pair is not None
        ]
        if rows:
            connection.execute(sa.insert(subject), rows)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER tell_of_version ON tree")
        op.execute("DROP FUNCTION unmask_tell_of_version()")
    op.drop_table("growth_subject")
    # Servers of the revision before know no pause.
    op.execute("UPDATE growth SET state = 'cancelled' WHERE state = 'paused'")
    with op.batch_alter_table("growth", recreate="never") as growth:
        for name in ("waits_for", "has_turn", "turn", "rollouts_counted", "revision", "asked"):
            growth.drop_column(name)

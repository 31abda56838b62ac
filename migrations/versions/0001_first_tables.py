"""The tables of the first release.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "distribution",
        sa.Column(
            "key",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="hash of model, prompt, prefix and view",
        ),
        sa.Column(
            "ids",
            sa.LargeBinary(),
            nullable=False,
            comment="int32, likeliest first, then extra ids",
        ),
        sa.Column(
            "logprobs",
            sa.LargeBinary(),
            nullable=False,
            comment="float32; -1e4 is probability zero",
        ),
        sa.Column(
            "top_k", sa.Integer(), nullable=False, comment="how many of the ids are the likeliest"
        ),
        sa.Column(
            "complete", sa.Boolean(), nullable=False, comment="whether the ids are the vocabulary"
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_distribution")),
    )
    op.create_table(
        "growth",
        sa.Column(
            "id", sa.String(length=40), nullable=False, comment="gro-<hash of the request_id>"
        ),
        sa.Column("request_id", sa.String(length=200), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False, comment="what is wanted, with ids for names"),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("rollouts_sampled", sa.BigInteger(), nullable=False),
        sa.Column("tokens_sampled", sa.BigInteger(), nullable=False),
        sa.Column(
            "rollouts_cached",
            sa.BigInteger(),
            nullable=False,
            comment="found in the tree at the start",
        ),
        sa.Column("rollouts_planned", sa.BigInteger(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False, comment="that it grows"),
        sa.Column("nodes_flat", sa.Integer(), nullable=False, comment="that it skips"),
        sa.Column(
            "attempt", sa.Integer(), nullable=False, comment="how many servers worked on it before"
        ),
        sa.Column(
            "owner",
            sa.String(length=80),
            nullable=True,
            comment="which server process is working on it",
        ),
        sa.Column(
            "lease_expires_at",
            sa.Float(),
            nullable=True,
            comment="another server may take it over after that",
        ),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_growth")),
        sa.UniqueConstraint("request_id", name=op.f("uq_growth_request_id")),
    )
    op.create_index(op.f("ix_growth_created_at_id"), "growth", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_growth_state"), "growth", ["state"], unique=False)
    op.create_table(
        "model",
        sa.Column(
            "fingerprint",
            sa.String(length=40),
            nullable=False,
            comment="weights, config and tokenizer",
        ),
        sa.Column(
            "source", sa.Text(), nullable=False, comment="where it was loaded from: a directory"
        ),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("vocab_size", sa.Integer(), nullable=False, comment="columns of the logits"),
        sa.Column(
            "max_context", sa.Integer(), nullable=False, comment="prompt and generation, in tokens"
        ),
        sa.Column(
            "tokenizer_fingerprint",
            sa.String(length=40),
            nullable=False,
            comment="the id-to-token map",
        ),
        sa.Column("eos_ids", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_model")),
    )
    op.create_table(
        "verifier",
        sa.Column("key", sa.Integer(), nullable=False, comment="small, for the statistics' keys"),
        sa.Column("id", sa.String(length=40), nullable=False, comment="ver-<fingerprint>"),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, comment="of the grading code"),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_verifier")),
        sa.UniqueConstraint("id", name=op.f("uq_verifier_id")),
        sa.UniqueConstraint("name", name=op.f("uq_verifier_name")),
    )
    op.create_table(
        "policy",
        sa.Column("id", sa.String(length=40), nullable=False, comment="pol-<fingerprint>"),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("model_fingerprint", sa.String(length=40), nullable=False),
        sa.Column("temperature", sa.Float(), nullable=False),
        sa.Column("top_p", sa.Float(), nullable=False),
        sa.Column("top_k", sa.Integer(), nullable=False),
        sa.Column(
            "max_new_tokens",
            sa.Integer(),
            nullable=False,
            comment="counted from the question's end",
        ),
        sa.Column("stop_ids", sa.JSON(), nullable=False),
        sa.Column(
            "prompting", sa.JSON(), nullable=False, comment="how a question becomes prompt tokens"
        ),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_fingerprint"],
            ["model.fingerprint"],
            name=op.f("fk_policy_model_fingerprint_model"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
        sa.UniqueConstraint("name", name=op.f("uq_policy_name")),
    )
    op.create_table(
        "question",
        sa.Column("id", sa.String(length=40), nullable=False, comment="que-<fingerprint>"),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column(
            "fields", sa.JSON(), nullable=False, comment="question, answer, solution, hint, ..."
        ),
        sa.Column(
            "prompt_tokens",
            sa.LargeBinary(),
            nullable=True,
            comment="only where the prompt was given as tokens",
        ),
        sa.Column("verifier_key", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["verifier_key"], ["verifier.key"], name=op.f("fk_question_verifier_key_verifier")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_question")),
        sa.UniqueConstraint("name", name=op.f("uq_question_name")),
    )
    op.create_table(
        "teacher",
        sa.Column("id", sa.String(length=40), nullable=False, comment="tea-<fingerprint>"),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("model_fingerprint", sa.String(length=40), nullable=False),
        sa.Column("context", sa.Text(), nullable=False, comment="name of the context"),
        sa.Column(
            "context_template",
            sa.Text(),
            nullable=False,
            comment="Jinja over the question's fields",
        ),
        sa.Column("prompting", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_fingerprint"],
            ["model.fingerprint"],
            name=op.f("fk_teacher_model_fingerprint_model"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_teacher")),
        sa.UniqueConstraint("name", name=op.f("uq_teacher_name")),
    )
    op.create_table(
        "trajectory",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("policy_id", sa.String(length=40), nullable=False),
        sa.Column("question_id", sa.String(length=40), nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.Column(
            "finish", sa.SmallInteger(), nullable=False, comment="0 stop, 1 length, 2 unknown"
        ),
        sa.Column(
            "seed",
            sa.BigInteger(),
            nullable=True,
            comment="of the sampling; null if it was submitted",
        ),
        sa.Column(
            "ordinal", sa.Integer(), nullable=True, comment="which of the samples of that seed"
        ),
        sa.Column(
            "rollout_uid",
            sa.LargeBinary(length=16),
            nullable=True,
            comment="its rollout in the tree; null if submitted",
        ),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["policy.id"], name=op.f("fk_trajectory_policy_id_policy")
        ),
        sa.ForeignKeyConstraint(
            ["question_id"], ["question.id"], name=op.f("fk_trajectory_question_id_question")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trajectory")),
    )
    op.create_index(
        op.f("ix_trajectory_created_at_id"), "trajectory", ["created_at", "id"], unique=False
    )
    op.create_index(
        op.f("ix_trajectory_policy_id_question_id_created_at_id"),
        "trajectory",
        ["policy_id", "question_id", "created_at", "id"],
        unique=False,
    )
    op.create_table(
        "tree",
        sa.Column("id", BigId, nullable=False),
        sa.Column("policy_id", sa.String(length=40), nullable=False),
        sa.Column("question_id", sa.String(length=40), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="one more at every change"),
        sa.Column("nodes", sa.BigInteger(), nullable=False, comment="so far; numbers the next one"),
        sa.Column(
            "rollouts", sa.BigInteger(), nullable=False, comment="so far; numbers the next one"
        ),
        sa.Column("tokens", sa.BigInteger(), nullable=False, comment="sampled, that is paid for"),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["policy.id"], name=op.f("fk_tree_policy_id_policy")
        ),
        sa.ForeignKeyConstraint(
            ["question_id"], ["question.id"], name=op.f("fk_tree_question_id_question")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tree")),
        sa.UniqueConstraint("policy_id", "question_id", name=op.f("uq_tree_policy_id_question_id")),
    )
    op.create_table(
        "node",
        sa.Column("id", BigId, autoincrement=False, nullable=False),
        sa.Column("tree_id", BigId, nullable=False),
        sa.Column("parent_id", BigId, nullable=True, comment="null at the root"),
        sa.Column(
            "fingerprint",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="of the prefix up to and including the edge's first token",
        ),
        sa.Column(
            "depth", sa.Integer(), nullable=False, comment="of the edge's last token; the root is 0"
        ),
        sa.Column(
            "edge", sa.LargeBinary(), nullable=False, comment="tokens between the parent and here"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["node.id"],
            name=op.f("fk_node_parent_id_node"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(["tree_id"], ["tree.id"], name=op.f("fk_node_tree_id_tree")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
        sa.UniqueConstraint("tree_id", "fingerprint", name=op.f("uq_node_tree_id_fingerprint")),
    )
    op.create_index(op.f("ix_node_parent_id"), "node", ["parent_id"], unique=False)
    op.create_table(
        "trajectory_outcome",
        sa.Column("trajectory_id", sa.String(length=40), nullable=False),
        sa.Column("verifier_key", sa.Integer(), nullable=False),
        sa.Column("reward", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trajectory_id"],
            ["trajectory.id"],
            name=op.f("fk_trajectory_outcome_trajectory_id_trajectory"),
        ),
        sa.ForeignKeyConstraint(
            ["verifier_key"],
            ["verifier.key"],
            name=op.f("fk_trajectory_outcome_verifier_key_verifier"),
        ),
        sa.PrimaryKeyConstraint(
            "trajectory_id", "verifier_key", name=op.f("pk_trajectory_outcome")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tree_verifier",
        sa.Column("tree_id", BigId, nullable=False),
        sa.Column("verifier_key", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tree_id"], ["tree.id"], name=op.f("fk_tree_verifier_tree_id_tree")
        ),
        sa.ForeignKeyConstraint(
            ["verifier_key"], ["verifier.key"], name=op.f("fk_tree_verifier_verifier_key_verifier")
        ),
        sa.PrimaryKeyConstraint("tree_id", "verifier_key", name=op.f("pk_tree_verifier")),
        comment="The verifiers by which every rollout of the tree is graded.",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "node_stat",
        sa.Column("node_id", BigId, nullable=False),
        sa.Column("verifier_key", sa.Integer(), nullable=False),
        sa.Column(
            "n", sa.BigInteger(), nullable=False, comment="rollouts valid all along the edge"
        ),
        sa.Column("reward_sum", sa.Float(), nullable=False),
        sa.Column(
            "truncated", sa.BigInteger(), nullable=False, comment="of them cut off by their limit"
        ),
        sa.Column(
            "forced_n",
            sa.BigInteger(),
            nullable=False,
            comment="of them with the first token forced",
        ),
        sa.Column("forced_reward_sum", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_node_stat_node_id_node")),
        sa.ForeignKeyConstraint(
            ["verifier_key"], ["verifier.key"], name=op.f("fk_node_stat_verifier_key_verifier")
        ),
        sa.PrimaryKeyConstraint("node_id", "verifier_key", name=op.f("pk_node_stat")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollout",
        sa.Column("id", BigId, autoincrement=False, nullable=False),
        sa.Column(
            "uid", sa.LargeBinary(length=16), nullable=False, comment="makes a retry harmless"
        ),
        sa.Column("tree_id", BigId, nullable=False),
        sa.Column(
            "start_node_id",
            BigId,
            nullable=False,
            comment="before the last forced token; the root if none was forced",
        ),
        sa.Column("end_node_id", BigId, nullable=False, comment="spells its tokens"),
        sa.Column(
            "forced_depth",
            sa.Integer(),
            nullable=False,
            comment="generated tokens that were imposed",
        ),
        sa.Column("depth", sa.Integer(), nullable=False, comment="generated tokens in all"),
        sa.Column(
            "digest",
            sa.LargeBinary(length=16),
            nullable=False,
            comment="of the tokens, to check the tree",
        ),
        sa.Column("finish", sa.SmallInteger(), nullable=False, comment="0 stop, 1 length"),
        sa.Column(
            "growth_id",
            sa.String(length=40),
            nullable=True,
            comment="which growth paid for it; null for trajectories",
        ),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["end_node_id"], ["node.id"], name=op.f("fk_rollout_end_node_id_node")
        ),
        sa.ForeignKeyConstraint(
            ["start_node_id"], ["node.id"], name=op.f("fk_rollout_start_node_id_node")
        ),
        sa.ForeignKeyConstraint(["tree_id"], ["tree.id"], name=op.f("fk_rollout_tree_id_tree")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
        sa.UniqueConstraint("uid", name=op.f("uq_rollout_uid")),
    )
    op.create_table(
        "outcome",
        sa.Column("rollout_id", BigId, nullable=False),
        sa.Column("verifier_key", sa.Integer(), nullable=False),
        sa.Column("reward", sa.Float(), nullable=False, comment="in [0, 1]"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_outcome_rollout_id_rollout")
        ),
        sa.ForeignKeyConstraint(
            ["verifier_key"], ["verifier.key"], name=op.f("fk_outcome_verifier_key_verifier")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "verifier_key", name=op.f("pk_outcome")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("outcome")
    op.drop_table("rollout")
    op.drop_table("node_stat")
    op.drop_table("tree_verifier")
    op.drop_table("trajectory_outcome")
    op.drop_index(op.f("ix_node_parent_id"), table_name="node")
    op.drop_table("node")
    op.drop_table("tree")
    op.drop_index(
        op.f("ix_trajectory_policy_id_question_id_created_at_id"), table_name="trajectory"
    )
    op.drop_index(op.f("ix_trajectory_created_at_id"), table_name="trajectory")
    op.drop_table("trajectory")
    op.drop_table("teacher")
    op.drop_table("question")
    op.drop_table("policy")
    op.drop_table("verifier")
    op.drop_table("model")
    op.drop_index(op.f("ix_growth_state"), table_name="growth")
    op.drop_index(op.f("ix_growth_created_at_id"), table_name="growth")
    op.drop_table("growth")
    op.drop_table("distribution")

"""Rollouts in fewer bytes, and what is pruned is accounted for.

Edges are stored as `unmask_server.database.packing` has it, the growth of a rollout as 12 bytes.
What the functions below write is what that module wrote at this revision.

Revision ID: 0008_keeping
Revises: 0007_replicas
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b

import sqlalchemy as sa
from alembic import op
from unmask_server.database.packing import (
    decode_growth,
    decode_tokens,
    encode_growth,
    encode_tokens,
)

revision = "0008_keeping"
down_revision = "0007_replicas"
branch_labels = None
depends_on = None

NODES = 2000
"""Converted at a time."""

node = sa.table("node", sa.column("id", sa.BigInteger), sa.column("edge", sa.LargeBinary))
COUNTERS = (
    ("tree", "rollouts_pruned", "the first ones, which are gone"),
    ("growth", "rollouts_pruned", "gone since"),
    ("growth", "tokens_pruned", None),
)
GROWTH = "which growth paid for it; null for trajectories"


def upgrade() -> None:
    for table, name, comment in COUNTERS:
        count = sa.Column(
            name, sa.BigInteger(), nullable=False, server_default="0", comment=comment
        )
        with op.batch_alter_table(table, recreate="never") as change:
            change.add_column(count)
    op.create_table(
        "retention",
        sa.Column("policy_id", sa.String(40)),
        sa.Column(
            "days",
            sa.Float(),
            nullable=False,
            comment="its trees go when nothing came for so long",
        ),
        sa.PrimaryKeyConstraint("policy_id", name="pk_retention"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_retention_policy_id_policy"),
        comment="What `unmask-server prune --by-rules` goes by.",
    )
    op.create_table(
        "growth_client",
        sa.Column("request_id", sa.String(200)),
        sa.Column("client", sa.String(200), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("rollouts", sa.BigInteger(), nullable=False, comment="of the budget"),
        sa.Column("tokens", sa.BigInteger(), nullable=False, comment="of the budget"),
        sa.PrimaryKeyConstraint("request_id", name="pk_growth_client"),
        comment="Who started the growths of the last 24 hours, where that is counted.",
    )
    op.create_index("ix_growth_client_client_started_at", "growth_client", ["client", "started_at"])
    convert_edges(encode_tokens)
    convert_growths(sa.LargeBinary(), sa.Text(), encode_growth)
    op.execute("UPDATE rollout SET digest = substr(digest, 1, 8)")


def downgrade() -> None:
    # What was pruned is no longer accounted for: growths are charged with more than is there.
    convert_growths(sa.String(40), sa.LargeBinary(), decode_growth)
    convert_edges(decode_tokens)
    lengthen_digests()
    op.drop_table("growth_client")
    op.drop_table("retention")
    for table, name, _ in COUNTERS:
        with op.batch_alter_table(table, recreate="never") as change:
            change.drop_column(name)


def convert_edges(convert: Callable[[bytes], bytes]) -> None:
    connection = op.get_bind()
    change = (
        sa.update(node)
        .where(node.c.id == sa.bindparam("of_id"))
        .values(edge=sa.bindparam("new_edge"))
    )
    for rows in pages(connection):
        changed = [{"of_id": id_, "new_edge": convert(edge)} for id_, edge in rows if edge]
        if changed:
            connection.execute(change, changed)


def pages(connection: sa.Connection) -> Iterator[list[tuple[int, bytes]]]:
    after = -1
    while True:
        wanted = sa.select(node).where(node.c.id > after).order_by(node.c.id).limit(NODES)
        rows = [(id_, bytes(edge)) for id_, edge in connection.execute(wanted)]
        if not rows:
            return
        yield rows
        after = rows[-1][0]


def lengthen_digests() -> None:
    """Compute from the tokens what the upgrade cut off, one tree after another."""
    connection = op.get_bind()
    places = sa.table("node", *map(sa.column, ("id", "tree_id", "parent_id", "edge")))
    ends = sa.table("rollout", *map(sa.column, ("id", "tree_id", "end_node_id", "digest")))
    change = (
        sa.update(ends)
        .where(ends.c.id == sa.bindparam("of_id"))
        .values(digest=sa.bindparam("new_digest"))
    )
    for tree_id in connection.scalars(sa.text("SELECT id FROM tree")).all():
        wanted = sa.select(places.c.id, places.c.parent_id, places.c.edge)
        rows = connection.execute(wanted.where(places.c.tree_id == tree_id))
        nodes = {id_: (parent_id, bytes(edge)) for id_, parent_id, edge in rows}
        states: dict[int | None, blake2b] = {None: blake2b(digest_size=16)}
        wanted = sa.select(ends.c.id, ends.c.end_node_id).where(ends.c.tree_id == tree_id)
        changed = [
            {"of_id": id_, "new_digest": state_of(end, nodes, states).digest()}
            for id_, end in connection.execute(wanted)
        ]
        if changed:
            connection.execute(change, changed)


def state_of(
    node_id: int,
    nodes: dict[int, tuple[int | None, bytes]],
    states: dict[int | None, blake2b],
) -> blake2b:
    """The hash of the tokens from the root to a node; `states` remembers those above."""
    below = []
    at: int | None = node_id
    while at not in states:
        assert at is not None
        below.append(at)
        at = nodes[at][0]
    state = states[at]
    for passed in reversed(below):
        state = state.copy()
        state.update(nodes[passed][1])
        states[passed] = state
    return state


def convert_growths(
    to: sa.types.TypeEngine[object],
    was: sa.types.TypeEngine[object],
    convert: Callable[[object], object],
) -> None:
    """Put another column of the same name in the place of `rollout.growth_id`."""
    connection = op.get_bind()
    op.execute("ALTER TABLE rollout RENAME COLUMN growth_id TO old_growth_id")
    with op.batch_alter_table("rollout", recreate="never") as change:
        change.add_column(sa.Column("growth_id", to, comment=GROWTH))
    rollout = sa.table("rollout", sa.column("old_growth_id", was), sa.column("growth_id", to))
    named = op.create_table(
        "named_growth",
        sa.Column("old_name", was, primary_key=True),
        sa.Column("new_name", to),
    )
    old = rollout.c.old_growth_id
    rows = connection.scalars(sa.select(old).where(old.is_not(None)).distinct()).all()
    if rows:
        connection.execute(
            sa.insert(named), [{"old_name": row, "new_name": convert(row)} for row in rows]
        )
    new = sa.select(named.c.new_name).where(named.c.old_name == old).scalar_subquery()
    connection.execute(sa.update(rollout).where(old.is_not(None)).values(growth_id=new))
    op.drop_table("named_growth")
    with op.batch_alter_table("rollout", recreate="never") as change:
        change.drop_column("old_growth_id")

"""The prefix tree of rollout outcomes, as everything else sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import (
    Connection,
    Engine,
    ScalarSelect,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError

from unmask_server.database.connect import query, transact
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import distribution, node, outcome, rollout, tree
from unmask_server.telemetry import metrics, tracing
from unmask_server.tree import insert as inserting
from unmask_server.tree import lookup, regrade, rollouts
from unmask_server.tree.fingerprint import digest, seed_fingerprint
from unmask_server.tree.ids import first_id, id_range
from unmask_server.tree.tokens import pack
from unmask_server.tree.types import (
    FINISH_STOP,
    AddResult,
    NewRollout,
    SeenLengths,
    StoredRollout,
    TreeRef,
    TreeStatistics,
    TreeView,
    UnknownTreeError,
)

_SEEDS_KEPT = 100_000
_PAGE = 5000
_LENGTHS = 1000
_FEW_LENGTHS = 20
_OTHER_TREES = 20


class TreeStore:
    """All trees of a database: rollouts go in, counts come out.

    Promises, on SQLite and on PostgreSQL alike:

    - What a call acknowledged by returning is durable (see `unmask_server.database.connect`).
    - A rollout counts exactly once, however often its uid is added, by whomever.
    - A rollout counts at every prefix of itself with at least `forced_depth` tokens, and nowhere
      else; under every verifier that is active on its tree.
    - A look-up is of one moment: it never sees a part of a batch.
    - Changes to one tree happen one after the other; on PostgreSQL, different trees do not wait for
      each other.

    Calls block and may be made from any thread. Transient errors of the database are retried; what
    is raised after that is SQLAlchemy's own.
    """

    def __init__(self, engine: Engine) -> None:
        """Use a database that `open_database` opened and `migrate` brought to its head."""
        self._engine = engine
        self._seeds: dict[int, bytes] = {}

    def open_tree(self, policy_id: str, question_id: str) -> TreeRef:
        """Return the tree of a policy on a question; make it, empty, if there is none.

        Raises:
            LookupError: the catalog knows no such policy or question.

        """
        wanted = select(tree).where(
            tree.c.policy_id == policy_id, tree.c.question_id == question_id
        )
        row = query(self._engine, lambda connection: connection.execute(wanted).first())
        if row is None:
            try:
                row = transact(
                    self._engine,
                    lambda connection: _make_tree(connection, policy_id, question_id),
                )
            except IntegrityError as error:
                raise LookupError(f"no policy {policy_id!r} or question {question_id!r}") from error
        self._remember(row)
        return TreeRef(row.id, row.policy_id, row.question_id, row.version)

    def add_rollouts(
        self,
        tree_id: int,
        rollouts: Sequence[NewRollout],
        *,
        then: Callable[[Connection, AddResult], None] | None = None,
    ) -> AddResult:
        """Record a batch of rollouts: all of it or, if this raises, nothing.

        A uid that is stored already, or twice in the batch, is reported as a duplicate and changes
        nothing. The tree's version grows by one if anything was inserted.

        Args:
            tree_id: of `open_tree`.
            rollouts: any number, thousands at best.
            then: is run in the same transaction after the batch, also if all were duplicates; what
                it writes is committed with the batch, what it raises undoes both. It must not use
                this store. After a transient error it is run again, in the new transaction.

        Raises:
            UnknownTreeError: there is no such tree.
            VerifiersDifferError: rewards are not given for exactly the active verifiers (one may
                have become active just now: see `verifiers`).
            ValueError: a rollout is malformed.

        """
        for new in rollouts:
            new.check()
        packed = [pack(new.tokens) for new in rollouts]

        def work(connection: Connection) -> AddResult:
            return inserting.add_rollouts(connection, tree_id, rollouts, packed, then)

        begun = time.perf_counter()
        with tracing.span("tree.insert", rollouts=len(rollouts)):
            try:
                result = transact(self._engine, work)
            except IntegrityError:
                # Another transaction inserted one of the uids into another tree, meanwhile. It
                # shows as a duplicate now; anything else raises again.
                result = transact(self._engine, work)
        metrics.INSERT_SECONDS.observe(time.perf_counter() - begun)
        metrics.ROLLOUTS_STORED.inc(len(result.inserted))
        metrics.ROLLOUTS_REPEATED.inc(len(result.duplicates))
        metrics.TREE_VERSIONS.inc(bool(result.inserted))
        return result

    def verifiers(self, tree_id: int) -> set[int]:
        """Return the keys of the verifiers that are active: by which every rollout is graded."""
        return query(self._engine, lambda c: inserting.active_verifiers(c, tree_id))

    def activate_verifier(
        self, tree_id: int, verifier_key: int, grade: regrade.Grade, batch: int = 1000
    ) -> None:
        """Grade every stored rollout under a verifier and make it active; done already, do nothing.

        `grade` is called with at most `batch` rollouts at a time, in ascending order of their ids,
        outside of any transaction, and must return a reward in [0, 1] for each. If this is
        interrupted, another call goes on where it ended. Rollouts added meanwhile are graded, too;
        should they keep coming faster than they are graded, the last of them are graded while the
        tree is locked.

        Raises:
            UnknownTreeError: there is no such tree.
            ValueError: `grade` gave something else than a reward for each.

        """
        regrade.activate_verifier(self._engine, tree_id, verifier_key, grade, batch)

    def look_up(
        self, tree_id: int, tokens: Sequence[int], positions: Sequence[int], verifier_key: int
    ) -> TreeView:
        """Count the rollouts at prefixes of a trajectory, and their next tokens: one query.

        Args:
            tree_id: of `open_tree`.
            tokens: the trajectory's generated tokens.
            positions: which prefixes ``tokens[:position]``, each in [0, len(tokens)].
            verifier_key: whose rewards.

        Raises:
            UnknownTreeError: there is no such tree.
            VerifiersDifferError: the verifier is not active on the tree.
            ValueError: a position is out of range, or a token is no id.
            TreeCorruptError: the nodes that were found contradict the tokens.

        """
        begun = time.perf_counter()
        with tracing.span("tree.look_up", positions=len(positions)):
            seed = self._seed(tree_id)
            found = query(
                self._engine,
                lambda c: lookup.look_up(c, tree_id, seed, tokens, positions, verifier_key),
            )
        metrics.LOOK_UP_SECONDS.observe(time.perf_counter() - begun)
        return found

    def lengths(self, tree_id: int) -> SeenLengths:
        """How long some rollouts of a tree are, and where there are hardly any, of others.

        The others are of the same policy.
        """
        rows = self._lengths(tree_id, _LENGTHS)
        own = [depth for depth, forced in rows if forced == 0]
        found = SeenLengths(own, [], [(f, depth) for depth, f in rows if f > 0])
        if len(own) >= _FEW_LENGTHS:
            return found
        mine = select(tree.c.policy_id).where(tree.c.id == tree_id).scalar_subquery()
        others = (
            select(tree.c.id)
            .where(tree.c.policy_id == mine, tree.c.id != tree_id)
            .order_by(tree.c.id.desc())
            .limit(_OTHER_TREES)
        )
        trees = query(self._engine, lambda connection: list(connection.execute(others).scalars()))
        for other in trees:
            rows = self._lengths(other, _FEW_LENGTHS)
            found.others.extend(depth for depth, forced in rows if forced == 0)
        return found

    def _lengths(self, tree_id: int, limit: int) -> list[tuple[int, int]]:
        """Depth and forced depth of the oldest rollouts: a tree begins with generations."""
        first, beyond = id_range(tree_id)
        wanted = (
            select(rollout.c.depth, rollout.c.forced_depth)
            .where(rollout.c.id >= first, rollout.c.id < beyond)
            .order_by(rollout.c.id)
            .limit(limit)
        )
        rows = query(self._engine, lambda connection: connection.execute(wanted).all())
        return [(depth, forced) for depth, forced in rows]

    def iter_rollouts(self, tree_id: int, after_id: int, limit: int) -> list[StoredRollout]:
        """Read the next `limit` rollouts with ids above `after_id` (0 for the first ones).

        Three queries, whatever the number. An empty list is the end.
        """
        statement = rollouts.rollout_rows(tree_id, after_id).limit(limit)
        return query(
            self._engine,
            lambda c: rollouts.spell(c, tree_id, list(c.execute(statement))),
        )

    def first_rollouts(self, tree_id: int, number: int, after_id: int = 0) -> list[StoredRollout]:
        """Read those of the first `number` rollouts of a tree that come after an id.

        `TreeView.rollouts` of them are those that were there when it was looked up.
        """
        found: list[StoredRollout] = []
        beyond = first_id(tree_id) + number
        while page := self.iter_rollouts(tree_id, after_id, _PAGE):
            found += [rollout for rollout in page if rollout.id < beyond]
            after_id = page[-1].id
            if after_id >= beyond - 1:
                break
        return found

    def oldest_id(self, tree_id: int) -> int | None:
        """Read the id of the first rollout that was not pruned; None without any."""
        first, beyond = id_range(tree_id)
        wanted = (
            select(rollout.c.id)
            .where(rollout.c.id >= first, rollout.c.id < beyond)
            .order_by(rollout.c.id)
            .limit(1)
        )
        found: int | None = query(self._engine, lambda connection: connection.scalar(wanted))
        return found

    def first_correct(
        self, tree_id: int, verifier_key: int, *, without: tuple[int, ...] | None = None
    ) -> StoredRollout | None:
        """Read the first free rollout that has stopped with a reward of 1, if there is one.

        Args:
            tree_id: of `open_tree`.
            verifier_key: whose reward; active on the tree.
            without: tokens that it must not have.

        """
        correct = (
            select(outcome.c.rollout_id)
            .where(outcome.c.rollout_id == rollout.c.id)
            .where(outcome.c.verifier_key == verifier_key, outcome.c.reward >= 1.0)
        )
        wanted = (
            rollouts.rollout_rows(tree_id)
            .where(rollout.c.forced_depth == 0, rollout.c.finish == FINISH_STOP)
            .where(correct.exists())
        )
        if without is not None:
            wanted = wanted.where(rollout.c.digest != digest(pack(without)))

        def first(connection: Connection) -> list[StoredRollout]:
            return rollouts.spell(connection, tree_id, list(connection.execute(wanted.limit(1))))

        return next(iter(query(self._engine, first)), None)

    def versions(self, tree_ids: Iterable[int]) -> dict[int, int]:
        """Read the versions of trees; those that do not exist are left out."""
        wanted = select(tree.c.id, tree.c.version).where(tree.c.id.in_(list(tree_ids)))
        return query(self._engine, lambda c: {row.id: row.version for row in c.execute(wanted)})

    def statistics(self) -> TreeStatistics:
        """Add up all trees, from the counters that each keeps, and count the distributions."""
        counted = select(func.count()).select_from(distribution).scalar_subquery()
        return TreeStatistics(*self._totals(counted))

    def sizes(self) -> tuple[int, int, int, int]:
        """Add up all trees: how many there are, their nodes, rollouts and sampled tokens."""
        trees, nodes, rollouts, tokens = self._totals()
        return trees, nodes, rollouts, tokens

    def _totals(self, *more: ScalarSelect[int]) -> list[int]:
        totals = select(
            func.count(),
            func.coalesce(func.sum(tree.c.nodes), 0),
            func.coalesce(func.sum(tree.c.rollouts - tree.c.rollouts_pruned), 0),
            func.coalesce(func.sum(tree.c.tokens), 0),
            *more,
        ).select_from(tree)
        return [int(value) for value in query(self._engine, lambda c: c.execute(totals).one())]

    def _seed(self, tree_id: int) -> bytes:
        """Return the name of the empty prefix; a tree's never changes."""
        seed = self._seeds.get(tree_id)
        if seed is None:
            wanted = select(tree).where(tree.c.id == tree_id)
            row = query(self._engine, lambda c: c.execute(wanted).first())
            if row is None:
                raise UnknownTreeError(f"there is no tree {tree_id}")
            seed = self._remember(row)
        return seed

    def _remember(self, row: AnyRow) -> bytes:
        if len(self._seeds) >= _SEEDS_KEPT:
            self._seeds.clear()
        seed = self._seeds[row.id] = seed_fingerprint(row.policy_id, row.question_id)
        return seed


def _make_tree(connection: Connection, policy_id: str, question_id: str) -> AnyRow:
    postgresql = connection.dialect.name == "postgresql"
    statement = (postgresql_insert if postgresql else sqlite_insert)(tree)
    made = connection.execute(
        statement.values(
            policy_id=policy_id, question_id=question_id, version=0, nodes=1, rollouts=0, tokens=0
        )
        .on_conflict_do_nothing(index_elements=["policy_id", "question_id"])
        .returning(tree.c.id)
    ).first()
    if made is not None:
        root = {
            "id": first_id(made.id),
            "tree_id": made.id,
            "fingerprint": seed_fingerprint(policy_id, question_id),
            "depth": 0,
            "edge": b"",
        }
        connection.execute(insert(node), root)
    return connection.execute(
        select(tree).where(tree.c.policy_id == policy_id, tree.c.question_id == question_id)
    ).one()

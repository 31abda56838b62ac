"""Whatever is done in whatever order, the tree says what a plain list of rollouts says."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, insert
from unmask_server.database.connect import write
from unmask_server.database.schema import question
from unmask_server.tree import NewRollout, StoredRollout, TreeStore, check_tree

from tests.tree.naive import NaiveTree, assert_agrees

VERIFIERS = (1, 2)
# Two ids make prefixes meet all the time; the third makes nodes with several children.
PATHS = st.lists(st.integers(0, 2), max_size=8).map(tuple)
REWARDS = st.sampled_from([0.0, 0.25, 1.0])


Draft = tuple[tuple[int, ...], int, int, tuple[float, ...]]


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    tokens = draw(PATHS)
    forced = draw(st.integers(0, len(tokens)))
    rewards = tuple(draw(REWARDS) for _ in VERIFIERS)
    return tokens, forced, draw(st.integers(0, 1)), rewards


class TreeMachine(RuleBasedStateMachine):
    """All operations on one tree, each example with a tree of its own in the same database."""

    engine: Engine
    trees_made = 0

    @initialize()
    def open(self) -> None:
        type(self).trees_made += 1
        self.store = TreeStore(self.engine)
        self.tree = _fresh_tree(self.engine, self.store, type(self).trees_made)
        self.model = NaiveTree()
        # Rewards by uid of the verifiers that are not active yet, for when they are.
        self.grades: dict[bytes, dict[int, float]] = {}

    @rule(batch=st.lists(drafts(), max_size=6), repeat=st.booleans())
    def add(
        self, batch: list[tuple[tuple[int, ...], int, int, tuple[float, ...]]], repeat: bool
    ) -> None:
        new = []
        for tokens, forced, finish, rewards in batch:
            uid = os.urandom(16)
            self.grades[uid] = dict(zip(VERIFIERS, rewards, strict=True))
            new.append(self._rollout(uid, tokens, forced, finish))
        if repeat and self.model.rollouts:
            known = self.model.rollouts[-1]
            new += [self._rollout(known.uid, known.tokens, known.forced_depth, known.finish)]
            new += new[:1]
        result = self.store.add_rollouts(self.tree, new)
        inserted, duplicates = self.model.add(
            [self._rollout(r.uid, r.tokens, r.forced_depth, r.finish, VERIFIERS) for r in new]
        )
        assert (result.inserted, result.duplicates) == (inserted, duplicates)
        assert result.version == self.model.version

    @rule(key=st.sampled_from(VERIFIERS), batch=st.integers(1, 5))
    def activate(self, key: int, batch: int) -> None:
        def grade(rollouts: list[StoredRollout]) -> list[float]:
            assert len(rollouts) <= batch
            return [self.grades[stored.uid][key] for stored in rollouts]

        self.store.activate_verifier(self.tree, key, grade, batch)
        self.model.version += key not in self.model.verifiers
        self.model.verifiers.add(key)

    @rule(tokens=PATHS)
    def look_up(self, tokens: tuple[int, ...]) -> None:
        for key in self.model.verifiers:
            view = self.store.look_up(self.tree, tokens, range(len(tokens) + 1), key)
            assert_agrees(view, self.model, tokens, key)

    @rule(tokens=PATHS, data=st.data())
    def look_up_one_position(self, tokens: tuple[int, ...], data: st.DataObject) -> None:
        position = data.draw(st.integers(0, len(tokens)))
        for key in self.model.verifiers:
            view = self.store.look_up(self.tree, tokens, [position], key)
            assert_agrees(view, self.model, tokens, key)

    @rule(limit=st.integers(1, 4))
    def read_back(self, limit: int) -> None:
        stored: list[StoredRollout] = []
        while page := self.store.iter_rollouts(self.tree, stored[-1].id if stored else 0, limit):
            stored += page
        assert [(r.uid, r.tokens, r.forced_depth, r.finish, r.rewards) for r in stored] == [
            (
                r.uid,
                r.tokens,
                r.forced_depth,
                r.finish,
                {key: r.rewards[key] for key in self.model.verifiers},
            )
            for r in self.model.rollouts
        ]

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "tree"):
            assert check_tree(self.engine, self.tree) == []
            assert self.store.verifiers(self.tree) == self.model.verifiers

    def _rollout(
        self,
        uid: bytes,
        tokens: tuple[int, ...],
        forced: int,
        finish: int,
        keys: tuple[int, ...] | None = None,
    ) -> NewRollout:
        wanted = self.model.verifiers if keys is None else keys
        rewards = {key: self.grades[uid][key] for key in wanted}
        return NewRollout(uid, tokens, forced, finish, rewards)


def _fresh_tree(engine: Engine, store: TreeStore, number: int) -> int:
    """Open a tree that no example before has used."""
    question_id = f"example-{number}"
    with write(engine) as connection:
        connection.execute(
            insert(question),
            {"id": question_id, "fields": {}, "verifier_key": 1, "created_at": 0.0},
        )
    return store.open_tree("p1", question_id).id


def test_any_history_agrees_with_a_plain_list(database: Engine) -> None:
    class Machine(TreeMachine):
        engine = database

    on_sqlite = database.dialect.name == "sqlite"
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20 if on_sqlite else 5,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_many_histories_agree_with_a_plain_list(database: Engine) -> None:
    class Machine(TreeMachine):
        engine = database

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

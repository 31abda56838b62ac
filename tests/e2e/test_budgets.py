"""What a token may have sampled, over a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import unmask
from unmask.v1 import catalog_pb2
from unmask_server.access.principals import Budget, Scope
from unmask_server.access.tokens import TokenStore

from tests.e2e.conftest import MAX_NEW_TOKENS, World, serving

QUESTIONS = b'{"name": "one", "question": "q 1 2", "answer": "3"}'


def client(world: World, name: str, budget: Budget) -> unmask.AsyncClient:
    store = TokenStore(world.app.database)
    _, secret = store.create(name, Scope.GROW, expires_at=None, budget=budget)
    return unmask.AsyncClient(world.address, token=secret)


async def refused(call: Any) -> unmask.UnmaskError:
    try:
        await call
    except unmask.UnmaskError as error:
        return error
    raise AssertionError("it was let through")


async def test_a_tokens_budget_is_what_may_be_sampled(tmp_path: Path, models: Path) -> None:
    options = {"auth": ["tokens"], "model_roots": [str(models)]}
    async with serving(f"sqlite:///{tmp_path}/unmask.db", tmp_path, **options) as world:
        ann = client(world, "ann", Budget(rollouts=20))
        bob = client(world, "bob", Budget(tokens_per_day=10 * MAX_NEW_TOKENS))
        await ann.register_policy(
            str(models / "student"), name="student", max_new_tokens=MAX_NEW_TOKENS
        )
        request = catalog_pb2.RegisterQuestionsRequest(jsonl=QUESTIONS, verifier="last_number")
        metadata = ann._metadata()
        await world.stubs.catalog.RegisterQuestions(request, metadata=metadata)

        async def sample(who: unmask.AsyncClient, count: int, seed: int) -> Any:
            return await who.sample_trajectories(
                policy="student", questions=["one"], count=count, seed=seed
            )

        # Sampling: what was sampled counts, what is there costs nothing.
        assert (await sample(ann, 8, seed=1)).sampled == 8
        assert (await sample(ann, 8, seed=1)).sampled == 0
        error = await refused(sample(ann, 13, seed=2))
        assert error.reason == "BUDGET_SPENT"
        assert "12 that are left" in error.message
        trajectory = (await sample(bob, 8, seed=1)).trajectories[0]
        assert (await sample(bob, 10, seed=3)).sampled == 10
        error = await refused(sample(bob, 10, seed=4))
        assert error.reason == "QUOTA_EXCEEDED"

        # Growing: the budget of a growth, and what is added to it later by whoever adds it.
        growth = await ann.grow(trajectory, rollouts=10, rollouts_per_node=4, request_id="g")
        await growth.wait()
        error = await refused(ann.extend_growth(growth.id, rollouts=100))
        assert error.reason == "BUDGET_SPENT"
        error = await refused(ann.grow(trajectory, rollouts=13, rollouts_per_node=9))
        assert error.reason == "BUDGET_SPENT"
        # The same again is the same growth.
        await ann.grow(trajectory, rollouts=10, rollouts_per_node=4, request_id="g")

        # One that has ended goes on if what is left of its budget fits.
        ended = await growth.wait()
        await sample(ann, 12 - ended.rollouts_sampled, seed=5)
        error = await refused(ann.extend_growth(growth.id, rollouts_per_node=9))
        assert error.reason == "BUDGET_SPENT"
        assert (await growth.wait()).rollouts_per_node == 4
        await ann.close()
        await bob.close()

"""Promises that clients build on: nothing paid twice, nothing lost, nothing made up."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.growth.spec import State
from unmask_server.growth.store import GrowthStore

from tests.collected import collected
from tests.e2e.conftest import World, fill, serving
from tests.e2e.test_main_job import at, grow, growth_of, prefix, sampled, sampling_of, statistics
from tests.tiny import byte_bpe, save


async def register_lenient(world: World) -> str:
    await world.stubs.catalog.RegisterVerifier(
        catalog_pb2.RegisterVerifierRequest(
            name="lenient",
            kind=catalog_pb2.VERIFIER_KIND_REGEX,
            options={"pattern": "3", "truncated": "grade"},
        )
    )
    return "lenient"


@pytest.mark.slow
async def test_a_token_budget_does_not_favour_short_rollouts(world: World) -> None:
    """The rollouts in flight when it runs out are the long ones: they are waited for, and count."""
    for number in range(30):
        await grow(
            world,
            growth_of(
                growth_pb2.GrowthTarget(node=prefix()),
                request_id=f"tokens-{number}",
                rollouts_per_node=0,
                budget=growth_pb2.Budget(tokens=20),
            ),
        )
    await grow(
        world,
        growth_of(
            growth_pb2.GrowthTarget(node=prefix(question="two")),
            request_id="rollouts",
            rollouts_per_node=0,
            budget=growth_pb2.Budget(rollouts=400),
        ),
    )
    truncated = {}
    for question in ("one", "two"):
        response = await world.stubs.diagnosis.GetNode(
            diagnosis_pb2.GetNodeRequest(node=prefix(question=question))
        )
        counts = [(c.truncated, c.rollouts) for c in response.candidates]
        truncated[question] = sum(t for t, _ in counts) / sum(n for _, n in counts)
    # The questions differ a little; dropping what is in flight would leave hardly any long ones.
    assert truncated["one"] > truncated["two"] / 2 > 0


async def test_a_trajectory_does_not_vouch_for_itself_under_any_verifier(world: World) -> None:
    trajectory = await sampled(world)
    options = diagnosis_pb2.NodeOptions(verifier=await register_lenient(world))
    for position in range(trajectory.length):
        named = await world.stubs.diagnosis.GetNode(
            diagnosis_pb2.GetNodeRequest(node=at(trajectory.id, position), options=options)
        )
        own = next(c for c in named.candidates if c.token.id == trajectory.tokens[position].id)
        assert own.truncated <= own.rollouts
        others = await world.stubs.diagnosis.GetNode(
            diagnosis_pb2.GetNodeRequest(
                node=prefix(*(t.id for t in trajectory.tokens[:position])), options=options
            )
        )
        assert named.node.rollouts == others.node.rollouts - (0 if own.exact else 1)


async def test_a_sampled_policy_gradient_is_graded_by_the_verifier_that_is_asked_for(
    world: World,
) -> None:
    trajectory = await sampled(world)
    response = await world.stubs.diagnosis.GetAlignment(
        diagnosis_pb2.GetAlignmentRequest(
            node=at(trajectory.id, 0),
            options=diagnosis_pb2.NodeOptions(verifier=await register_lenient(world)),
            algorithms=[
                diagnosis_pb2.Algorithm(
                    loss=diagnosis_pb2.LOSS_DR_GRPO, form=diagnosis_pb2.FORM_SAMPLED
                )
            ],
        )
    )
    assert len(response.alignments) == 1


async def test_a_verifier_that_cannot_grade_a_question_is_refused(world: World) -> None:
    await world.stubs.catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            questions=[
                catalog_pb2.QuestionSpec(name="word", fields={"question": "q", "answer": "so"})
            ],
            verifier="exact",
        )
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stubs.diagnosis.GetNode(
            diagnosis_pb2.GetNodeRequest(
                node=prefix(question="word"),
                options=diagnosis_pb2.NodeOptions(verifier="last_number"),
            )
        )
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_checkpoint_that_was_overwritten_does_not_answer_under_the_old_name(
    tmp_path: Path, models: Path
) -> None:
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path / "a") as world:
        await fill(world, mine)
        shutil.copy(mine / "teacher" / "model.safetensors", mine / "student")
        shutil.copy(mine / "teacher" / "config.json", mine / "student")
        for call in (
            collected(world.stubs.trajectory.SampleTrajectories(sampling_of(world))),
            world.stubs.catalog.RegisterTeacher(
                catalog_pb2.RegisterTeacherRequest(
                    base_policy="student", context=catalog_pb2.Context(name="answer")
                )
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert (await statistics(world)).rollouts == 0


async def test_a_vanished_checkpoint_spoils_only_what_needs_it(
    tmp_path: Path, models: Path
) -> None:
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path / "a") as world:
        await fill(world, mine)
        await sampled(world)
    shutil.rmtree(mine / "student")
    async with serving(url, tmp_path / "b") as world:
        listed = await world.stubs.trajectory.ListTrajectories(
            trajectory_pb2.ListTrajectoriesRequest()
        )
        assert len(listed.trajectories) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stubs.trajectory.GetTrajectory(
                trajectory_pb2.GetTrajectoryRequest(trajectory=listed.trajectories[0].id)
            )
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_an_answer_does_not_depend_on_what_others_asked(tmp_path: Path) -> None:
    """With a vocabulary too large to be stored whole, on two servers over one database."""
    student = save(tmp_path / "student", byte_bpe(), seed=1, scale=2.0, chat=None)
    teacher = save(tmp_path / "teacher", byte_bpe(), seed=2, scale=2.0, chat=None)
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    request = diagnosis_pb2.GetAlignmentRequest(
        node=prefix(),
        teachers=["teacher"],
        options=diagnosis_pb2.NodeOptions(top_k=5, min_coverage=0),
    )
    wide = diagnosis_pb2.GetAlignmentRequest()
    wide.CopyFrom(request)
    wide.options.top_k = 60
    async with serving(url, tmp_path / "a") as first, serving(url, tmp_path / "b") as second:
        catalog = first.stubs.catalog
        await catalog.RegisterPolicy(
            catalog_pb2.RegisterPolicyRequest(name="student", model=str(student), max_new_tokens=6)
        )
        await catalog.RegisterTeacher(
            catalog_pb2.RegisterTeacherRequest(
                name="teacher", model=str(teacher), policies=["student"]
            )
        )
        await catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest(
                questions=[
                    catalog_pb2.QuestionSpec(name="one", fields={"question": "3", "answer": "3"})
                ]
            )
        )
        await grow(first, growth_of(growth_pb2.GrowthTarget(node=prefix()), rollouts_per_node=40))
        before = await first.stubs.diagnosis.GetAlignment(request)
        assert (await first.stubs.diagnosis.GetAlignment(wide)).node.candidates > 60
        assert await second.stubs.diagnosis.GetAlignment(request) == before
        assert await first.stubs.diagnosis.GetAlignment(request) == before


async def test_the_same_trajectories_asked_for_at_once_are_sampled_once(world: World) -> None:
    request = sampling_of(world, count=30)
    answers = await asyncio.gather(
        *(collected(world.stubs.trajectory.SampleTrajectories(request)) for _ in range(3))
    )
    assert sorted(a.sampled for a in answers) == [0, 0, 30]
    assert len({a.SerializeToString() for a in answers if not a.sampled}) == 1
    assert (await statistics(world)).rollouts_sampled == 30


@pytest.mark.slow
async def test_a_client_that_gives_up_finds_its_trajectories_later(world: World) -> None:
    # One question first, so that the model is running and the deadline falls into the sampling.
    await collected(
        world.stubs.trajectory.SampleTrajectories(sampling_of(world, questions=["two"]))
    )
    request = sampling_of(world, count=3_000)
    patience, tries = 0.3, 1
    while True:
        try:
            done = await collected(
                world.stubs.trajectory.SampleTrajectories(request, timeout=patience)
            )
            break
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED or tries > 20:
                raise
            # However slow the machine is, it gets there.
            patience, tries = patience * 1.3, tries + 1
    assert len(done.trajectories) == 3_000
    stored = await statistics(world)
    # Only what was in flight at each deadline was sampled again.
    assert stored.rollouts_sampled < 3_002 + 2_000 * tries


async def test_health_can_be_watched(world: World) -> None:
    stub = health_pb2_grpc.HealthStub(world.stubs.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="unmask.v1.DiagnosisService"))
    async for response in watch:
        assert response.status == health_pb2.HealthCheckResponse.SERVING
        break
    watch.cancel()


async def test_a_growth_that_nobody_works_on_is_taken_up_again(world: World) -> None:
    """A claim whose task never came to be, for whatever reason, does not stay for ever."""
    runner = world.app.runner
    store = GrowthStore(world.app.database)
    request = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=20),
    )
    take = runner._take
    runner._take = lambda growth_id: asyncio.sleep(0)  # type: ignore[method-assign]
    started = await world.stubs.growth.StartGrowth(request)
    runner._take = take  # type: ignore[method-assign]
    assert store.claim(started.growth.id, runner._owner) is not None
    assert (await grow(world, request)).rollouts_sampled == 20


async def test_a_database_that_is_away_for_a_moment_does_not_fail_a_growth(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask_server.growth.runner.FIRST_PAUSE_SECONDS", 0.01)
    trees = world.app.runner._work._trees
    look_up, failures = trees.look_up, iter(range(3))

    def failing(*arguments: object) -> object:
        if next(failures, None) is not None:
            raise TimeoutError("another writer held the database")
        return look_up(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trees, "look_up", failing)
    done = await grow(world, growth_of(growth_pb2.GrowthTarget(node=prefix())))
    assert done.rollouts_sampled == 64


async def test_a_growth_that_failed_is_taken_up_again_by_its_id(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = world.app.runner._work._trees
    request = growth_of(growth_pb2.GrowthTarget(node=prefix()))
    with monkeypatch.context() as patch:
        patch.setattr(trees, "look_up", lambda *_: (_ for _ in ()).throw(KeyError("a bug")))
        started = await world.stubs.growth.StartGrowth(request)
        watch = growth_pb2.WatchGrowthRequest(growth=started.growth.id)
        async for progress in world.stubs.growth.WatchGrowth(watch):
            last = progress.growth
        assert last.state == growth_pb2.GROWTH_STATE_FAILED
        assert "a bug" in last.error
    assert (await grow(world, request)).rollouts_sampled == 64
    assert GrowthStore(world.app.database).get(started.growth.id).state is State.SUCCEEDED


async def test_listening_removes_no_file_and_no_living_server(world: World, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    with pytest.raises(ValueError, match="another server"):
        async with serving(url, tmp_path):
            pass
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "socket"
    file.write_text("mine")
    with pytest.raises(ValueError, match="no socket"):
        async with serving(url, tmp_path / "other"):
            pass
    assert file.read_text() == "mine"

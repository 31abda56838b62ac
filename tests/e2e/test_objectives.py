"""Several outcomes of the same rollouts, over a socket, against their texts graded by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from unmask import parse_algorithm
from unmask.objectives import parse_objective, parse_terms
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.api.trajectory import FINISHES
from unmask_server.tree import StoredRollout, TreeStore

from tests.collected import collected
from tests.e2e.conftest import World
from tests.e2e.test_bad_input import EXISTS, INVALID, NOT_FOUND, PRECONDITION, refused
from tests.e2e.test_controls import two_correct
from tests.e2e.test_main_job import at, grow, growth_of, prefix, sampled, sampling_of, statistics
from tests.tiny import WORDS

pytestmark = pytest.mark.slow

NUMBER = re.compile(r"\d+")
OBJECTIVES: list[dict[str, float]] = [
    {"own": 1.0, "worded": 0.2, "long": -0.1},
    {"long": -1.0},
    {"worded": 2.0, "own": -0.5},
]


def text_of(rollout: StoredRollout) -> str:
    return " ".join(WORDS[token] for token in rollout.tokens if token != 0)


def is_right(rollout: StoredRollout) -> float:
    numbers = NUMBER.findall(text_of(rollout))
    return float(rollout.finish == 0 and bool(numbers) and numbers[-1] == "3")


def is_worded(rollout: StoredRollout) -> float:
    return float("is" in text_of(rollout).split() or "The" in text_of(rollout).split())


def length(rollout: StoredRollout) -> float:
    return min(1.0, sum(token != 0 for token in rollout.tokens) / 4)


def score(rollout: StoredRollout) -> float:
    """Somebody's reward model."""
    return (len(text_of(rollout)) % 7) / 7


BY_HAND: dict[str, Callable[[StoredRollout], float]] = {
    "own": is_right, "worded": is_worded, "long": length, "score": score,
}  # fmt: skip


@dataclass
class Grown:
    """A trajectory and a question's beginning, with rollouts at their nodes."""

    world: World
    trajectory: trajectory_pb2.Trajectory

    def rollouts(self) -> list[StoredRollout]:
        trees = TreeStore(self.world.app.database)
        tree = trees.open_tree(self.trajectory.policy_id, self.trajectory.question_id)
        return trees.iter_rollouts(tree.id, 0, 100_000)

    async def node(self, objective: Mapping[str, float]) -> diagnosis_pb2.GetNodeResponse:
        request = diagnosis_pb2.GetNodeRequest(node=prefix(), options=options(objective))
        return await self.world.stubs.diagnosis.GetNode(request)

    async def alignment(
        self, node: diagnosis_pb2.NodeRef, algorithm: str, objective: Mapping[str, float]
    ) -> diagnosis_pb2.Alignment:
        request = diagnosis_pb2.GetAlignmentRequest(
            node=node,
            teachers=["teacher"],
            algorithms=[parse_algorithm(algorithm)],
            options=options(objective),
        )
        (found,) = (await self.world.stubs.diagnosis.GetAlignment(request)).alignments
        return found


def options(objective: Mapping[str, float]) -> diagnosis_pb2.NodeOptions:
    return diagnosis_pb2.NodeOptions(objective=parse_terms(objective))


async def verifier(world: World, name: str, kind: int, **fields: str) -> catalog_pb2.Verifier:
    request = catalog_pb2.RegisterVerifierRequest(name=name, kind=kind, options=fields)
    return (await world.stubs.catalog.RegisterVerifier(request)).verifier


@pytest.fixture
async def grown(world: World) -> Grown:
    await verifier(world, "worded", catalog_pb2.VERIFIER_KIND_FORMAT, pattern=r"\b(is|The)\b",
                   truncated="grade")  # fmt: skip
    await verifier(world, "long", catalog_pb2.VERIFIER_KIND_LENGTH, limit="4")
    await verifier(world, "score", catalog_pb2.VERIFIER_KIND_EXTERNAL, source="rm-1")
    trajectory = await sampled(world)
    await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id)))
    # Through every first token, however unlikely.
    everywhere = growth_of(
        *(growth_pb2.GrowthTarget(node=prefix(token)) for token in range(1, len(WORDS))),
        request_id="all",
        rollouts_per_node=20,
    )
    await grow(world, everywhere)
    return Grown(world, trajectory)


def value(objective: Mapping[str, float], rollout: StoredRollout) -> float:
    return sum(weight * BY_HAND[name](rollout) for name, weight in objective.items())


def by_token(
    objective: Mapping[str, float], rollouts: list[StoredRollout]
) -> dict[int, list[float]]:
    """Values after each token at the question's beginning, of rollouts that are valid there."""
    found: dict[int, list[float]] = {}
    for rollout in rollouts:
        if rollout.forced_depth <= 1:
            found.setdefault(rollout.tokens[0], []).append(value(objective, rollout))
    return found


def scale_of(objective: Mapping[str, float]) -> float:
    return sum(map(abs, objective.values()))


def dispersion(rewards: list[float]) -> float:
    """Variance over that of outcomes of 0 and 1, of which four are added."""
    mean = np.mean(rewards)
    most = mean * (1 - mean)
    found = (np.sum((rewards - mean) ** 2) + 4 * most) / ((len(rewards) + 3) * most)
    return min(1.0, float(found))


async def check(grown: Grown, objective: Mapping[str, float]) -> None:
    """Candidates and the ideal gradient are what the rollouts' texts say."""
    node = await grown.node(objective)
    values = by_token(objective, grown.rollouts())
    scale, least = scale_of(objective), sum(min(0.0, w) for w in objective.values())
    phi = dispersion([(value(objective, r) - least) / scale for r in grown.rollouts()])
    p, s, variance = [], [], []
    for candidate in node.candidates:
        mine = values.get(candidate.token.id, [])
        assert candidate.rollouts == len(mine)
        assert candidate.reward_sum == pytest.approx(sum(mine), abs=1e-6)
        assert candidate.success.low >= least - 1e-9
        assert candidate.success.high <= least + scale + 1e-9
        p.append(candidate.probability)
        s.append(np.mean(mine))
        share = (s[-1] - least) / scale
        spread = share * (1 - share) * scale**2
        variance.append(0.0 if candidate.exact else spread / (len(mine) / phi - 1))
    p, s, variance = np.array(p), np.array(s), np.array(variance)
    p = p / p.sum()
    g = p * (s - p @ s)
    expected = g @ g - p**2 @ (variance - 2 * p * variance + p**2 @ variance)
    found = await grown.alignment(prefix(), "reverse_kl", objective)
    assert found.ideal_norm_squared == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert found.ideal_norm_bound == pytest.approx(scale * 2**0.5 * (1 - p.max()), rel=1e-3)


async def test_any_objective_is_answered_from_the_same_rollouts(grown: Grown) -> None:
    before = await statistics(grown.world)
    for objective in OBJECTIVES:
        await check(grown, objective)
    after = await statistics(grown.world)
    assert (after.rollouts, after.rollouts_sampled) == (before.rollouts, before.rollouts_sampled)


async def test_answers_are_in_the_objectives_units(grown: Grown) -> None:
    t = next(i for i, token in enumerate(grown.trajectory.tokens) if token.id != 0)
    node = at(grown.trajectory.id, t)

    async def asked(algorithm: str, **objective: float) -> diagnosis_pb2.Alignment:
        return await grown.alignment(node, algorithm, objective)

    for text, step in (("reverse_kl", 1), ("grpo:sampled", 1), ("dr_grpo:sampled", 3)):
        one, three = await asked(text, long=1.0), await asked(text, long=3.0)
        assert three.ideal_norm_squared == pytest.approx(9 * one.ideal_norm_squared, rel=1e-3)
        assert three.ideal_norm_bound == pytest.approx(3 * one.ideal_norm_bound)
        assert three.descent_norm_squared == pytest.approx(step**2 * one.descent_norm_squared)
        # What rests on draws of its own, to their noise.
        assert three.gain.median == pytest.approx(3 * step * one.gain.median, rel=0.2)
        assert three.cosine.median == pytest.approx(one.cosine.median, abs=0.05)
    one, three = await asked("reverse_kl", long=1.0), await asked("reverse_kl", long=3.0)
    assert three.advantage.median == pytest.approx(3 * one.advantage.median, rel=0.2)
    # A reward that is added to a teacher's loss is the objective's; GRPO's has no units.
    added = await asked("opd:reward=0.5", long=3.0)
    same = await asked("opd:reward=1.5", long=1.0)
    assert added.descent_norm_squared == pytest.approx(same.descent_norm_squared)
    grpo = [await asked("opd:reward=0.5:reward_loss=grpo", long=w) for w in (1.0, 3.0)]
    assert grpo[0].descent_norm_squared == pytest.approx(grpo[1].descent_norm_squared)
    against = await asked("reverse_kl", long=-1.0)
    assert against.ideal_norm_squared == pytest.approx(one.ideal_norm_squared, rel=1e-3)
    assert against.cosine.median == pytest.approx(-one.cosine.median, abs=0.05)


async def test_groups_of_fractional_rewards_have_their_own_spread(grown: Grown) -> None:
    objective = OBJECTIVES[0]
    free = [value(objective, r) for r in grown.rollouts() if r.forced_depth == 0]
    uid = next(
        r for r in grown.rollouts()
        if r.forced_depth == 0 and list(r.tokens) == [t.id for t in grown.trajectory.tokens]
    )  # fmt: skip
    node = at(grown.trajectory.id, 0)
    y = grown.trajectory.tokens[0].id
    found = await grown.node(objective)
    p = np.zeros(len(WORDS))
    for candidate in found.candidates:
        p[candidate.token.id] = candidate.raw_probability
    towards = np.eye(len(WORDS))[y] - p
    advantage = value(objective, uid) - np.mean(free)
    for text, size in (("dr_grpo:sampled", 1.0), ("grpo:sampled", np.std(free))):
        step = advantage / size * towards
        answer = await grown.alignment(node, text, objective)
        assert answer.descent_norm_squared == pytest.approx(float(step @ step), rel=1e-3)


async def test_an_objective_can_be_registered_and_named(grown: Grown) -> None:
    world = grown.world
    named = await verifier(
        world, "kind", catalog_pb2.VERIFIER_KIND_OBJECTIVE, last_number="1", worded="0.20",
        long="-.1",
    )  # fmt: skip
    by_name = diagnosis_pb2.GetNodeRequest(
        node=prefix(), options=diagnosis_pb2.NodeOptions(verifier="kind")
    )
    found = await world.stubs.diagnosis.GetNode(by_name)
    assert found == await grown.node(OBJECTIVES[0])
    assert found.node.verifier_id == named.id
    # An objective of objectives is the sum of their terms.
    twice = await grown.node({"kind": 2.0, "long": 0.2})
    assert twice == await grown.node({"own": 2.0, "worded": 0.4})
    # One verifier with weight 1 is that verifier.
    assert (await grown.node({"own": 1.0})).node.verifier_id == (await plain(grown)).verifier_id
    # A question's own verifier may be one: then it grades what is sampled.
    specs = [catalog_pb2.QuestionSpec(name="three", fields={"question": "q 3", "answer": "3"})]
    request = catalog_pb2.RegisterQuestionsRequest(questions=specs, verifier="kind")
    (result,) = (await world.stubs.catalog.RegisterQuestions(request)).results
    assert result.question.verifier_id == named.id
    three = sampling_of(world, questions=["three"])
    for trajectory in (
        await collected(world.stubs.trajectory.SampleTrajectories(three))
    ).trajectories:
        assert 0.0 <= trajectory.reward <= 1.0


async def plain(grown: Grown) -> diagnosis_pb2.Node:
    request = diagnosis_pb2.GetNodeRequest(node=prefix())
    return (await grown.world.stubs.diagnosis.GetNode(request)).node


async def test_a_growth_can_be_for_an_objective(grown: Grown) -> None:
    request = growth_of(
        growth_pb2.GrowthTarget(trajectory=grown.trajectory.id),
        request_id="more",
        allocation=growth_pb2.ALLOCATION_ADAPTIVE,
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=100),
        teachers=["teacher"],
        options=options(OBJECTIVES[0]),
    )
    assert (await grow(grown.world, request)).rollouts_sampled > 0
    # What is sampled anew is graded by every objective that was asked for.
    for objective in OBJECTIVES:
        await check(grown, objective)


async def missing(grown: Grown, **fields: Any) -> list[cache_pb2.Rollout]:
    found: list[cache_pb2.Rollout] = []
    token = ""
    while True:
        request = cache_pb2.ListRolloutsRequest(
            policy="student", question="one", page_size=200, page_token=token, **fields
        )
        page = await grown.world.stubs.cache.ListRollouts(request)
        found += page.rollouts
        token = page.next_page_token
        if not token:
            return found


async def put(grown: Grown, rollouts: list[cache_pb2.Rollout]) -> int:
    request = cache_pb2.PutOutcomesRequest(
        verifier="score",
        outcomes=[
            cache_pb2.RolloutOutcome(rollout=r.id, reward=(len(r.text) % 7) / 7) for r in rollouts
        ],
    )
    return (await grown.world.stubs.cache.PutOutcomes(request)).added


async def test_a_clients_numbers_are_an_outcome_like_any_other(grown: Grown) -> None:
    world, objective = grown.world, {"own": 1.0, "score": 0.5}
    request = diagnosis_pb2.GetNodeRequest(node=prefix(), options=options(objective))
    ask = world.stubs.diagnosis.GetNode
    stored = grown.rollouts()
    await refused(ask(request), PRECONDITION, f"{len(stored)} rollouts")
    found = await missing(grown, missing_outcome_of="score")
    assert [r.text for r in found] == [text_of(r) for r in stored]
    assert [r.length for r in found] == [len(r.tokens) for r in stored]
    assert [r.forced for r in found] == [r.forced_depth for r in stored]
    assert [r.finish_reason for r in found] == [FINISHES[r.finish] for r in stored]
    assert await put(grown, found[5:]) == len(found) - 5
    await refused(ask(request), PRECONDITION, "5 rollouts")
    assert await missing(grown, missing_outcome_of="score") == found[:5]
    assert await put(grown, found) == 5
    assert await put(grown, found) == 0
    before = await statistics(world)
    await check(grown, objective)
    assert (await statistics(world)).rollouts == before.rollouts
    # Under other verifiers the tree grows on; then the new rollouts lack their numbers.
    more = growth_of(
        growth_pb2.GrowthTarget(node=prefix()), request_id="more", rollouts_per_node=2000
    )
    sampled_now = (await grow(world, more)).rollouts_sampled
    assert sampled_now > 0
    await check(grown, OBJECTIVES[0])
    await refused(ask(request), PRECONDITION, f"{sampled_now} rollouts")
    late = await missing(grown, missing_outcome_of="score")
    assert len(late) == sampled_now
    await put(grown, late)
    await check(grown, objective)


async def test_numbers_are_checked(grown: Grown) -> None:
    cache = grown.world.stubs.cache
    first, second, *_ = await missing(grown)

    def given(*outcomes: tuple[str, float], verifier: str = "score") -> Any:
        return cache.PutOutcomes(
            cache_pb2.PutOutcomesRequest(
                verifier=verifier,
                outcomes=[cache_pb2.RolloutOutcome(rollout=r, reward=x) for r, x in outcomes],
            )
        )

    await given((first.id, 0.5))
    both = (second.id, 0.25), (first.id, 0.75)
    await refused(given(*both), EXISTS, "source")
    # All or none.
    assert second.id in {r.id for r in await missing(grown, missing_outcome_of="score")}
    await refused(given((first.id, 1.5)), INVALID, "outcomes[0].reward")
    await refused(given((first.id, float("nan"))), INVALID, "outcomes[0].reward")
    await refused(given((first.id, 0.5), (first.id, 0.5)), INVALID, "outcomes[1].rollout")
    await refused(given(("x", 0.5)), INVALID, "outcomes[0].rollout")
    await refused(given(("ab" * 16, 0.5)), NOT_FOUND, "abab")
    await refused(given(), INVALID, "outcomes")
    await refused(given((first.id, 0.5), verifier="long"), INVALID, "verifier")
    await refused(
        cache.ListRollouts(
            cache_pb2.ListRolloutsRequest(
                policy="student", question="one", missing_outcome_of="long"
            )
        ),
        INVALID,
        "missing_outcome_of",
    )


async def test_nothing_can_be_sampled_for_numbers_that_are_not_there(grown: Grown) -> None:
    world = grown.world
    for objective in ({"score": 1.0}, {"own": 1.0, "score": -0.5}):
        request = growth_of(
            growth_pb2.GrowthTarget(node=prefix()),
            request_id="more",
            options=options(objective),
        )
        await refused(world.stubs.growth.StartGrowth(request), PRECONDITION, "PutOutcomes")
    specs = [catalog_pb2.QuestionSpec(fields={"question": "q 3", "answer": "3"})]
    registering = catalog_pb2.RegisterQuestionsRequest(questions=specs, verifier="score")
    await refused(world.stubs.catalog.RegisterQuestions(registering), INVALID, "verifier")


async def test_a_submitted_trajectory_needs_a_number_of_its_own(grown: Grown) -> None:
    world = grown.world
    submitted = await world.stubs.trajectory.SubmitTrajectory(
        trajectory_pb2.SubmitTrajectoryRequest(policy="student", question="one", text="The a is 3")
    )
    trajectory = submitted.trajectory.id
    await put(grown, await missing(grown))
    request = diagnosis_pb2.GetNodeRequest(
        node=at(trajectory, 1), options=diagnosis_pb2.NodeOptions(verifier="score")
    )
    await refused(world.stubs.diagnosis.GetNode(request), PRECONDITION, trajectory)
    outcome = cache_pb2.RolloutOutcome(rollout=trajectory, reward=0.5)
    await world.stubs.cache.PutOutcomes(
        cache_pb2.PutOutcomesRequest(verifier="score", outcomes=[outcome])
    )
    assert (await world.stubs.diagnosis.GetNode(request)).node.trajectory_id == trajectory


def comparison(grown: Grown, *objectives: Any, **fields: Any) -> Any:
    request = diagnosis_pb2.CompareObjectivesRequest(
        **{
            "trajectories": [grown.trajectory.id],
            "teachers": ["teacher", "self-answer"],
            "objectives": [parse_objective(objective) for objective in objectives],
            **fields,
        }
    )
    return grown.world.stubs.diagnosis.CompareObjectives(request)


async def test_it_is_told_where_objectives_disagree_about_a_teacher(grown: Grown) -> None:
    world = grown.world
    before = await statistics(world)
    asked = ["own", {"long": 1.0}, {"long": -1.0}]
    found = await comparison(grown, *asked)
    assert (await statistics(world)).rollouts == before.rollouts
    answers = []
    for objective, told in zip(asked, found.objectives, strict=True):
        chosen = diagnosis_pb2.NodeOptions() if objective == "own" else options(objective)
        common = {"teachers": ["teacher", "self-answer"], "options": chosen}
        alone = await world.stubs.diagnosis.SummarizeAlignments(
            diagnosis_pb2.SummarizeAlignmentsRequest(trajectories=[grown.trajectory.id], **common)
        )
        assert list(told.summaries) == list(alone.summaries)
        assert list(told.comparisons) == list(alone.comparisons)
        stream = world.stubs.diagnosis.StreamTrajectoryAlignments(
            diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
                trajectory=grown.trajectory.id, **common
            )
        )
        answers.append([list(answer.alignments) async for answer in stream])
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert [(d.objective, d.other_objective) for d in found.disagreements] == [
        pair for pair in pairs for _ in world.teachers
    ]
    for k, row in enumerate(found.disagreements):
        teacher = k % 2
        scored, expected = 0, []
        for t in range(grown.trajectory.length):
            a = answers[row.objective][t][teacher]
            b = answers[row.other_objective][t][teacher]
            if not (a.HasField("cosine") and b.HasField("cosine")):
                continue
            scored += 1
            low, high = sorted((a.probability_positive, b.probability_positive))
            if low < 0.05 and high > 0.95:
                expected.append((t, a.cosine, b.cosine))
        assert row.scored == scored
        assert row.disagreeing == len(expected)
        assert sorted((n.position, n.cosine.median) for n in row.nodes) == [
            (t, cosine.median) for t, cosine, _ in expected
        ]
        assert row.HasField("share") == (scored > 0)
        for node in row.nodes:
            assert node.token.id == grown.trajectory.tokens[node.position].id
            assert node.trajectory_id == grown.trajectory.id
    # A teacher that is for length is against brevity, wherever one can be sure.
    assert sum(row.disagreeing for row in found.disagreements[4:]) > 0


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"own": 0.0}, "options.objective"),
        ({"own": float("nan")}, "options.objective[0].weight"),
        ({"own": float("inf")}, "options.objective[0].weight"),
        ({"own": 1.0, "last_number": 1.0}, "options.objective"),
    ],
)
async def test_what_is_no_objective_is_refused(
    world: World, terms: dict[str, float], field: str
) -> None:
    request = diagnosis_pb2.GetNodeRequest(node=prefix(), options=options(terms))
    await refused(world.stubs.diagnosis.GetNode(request), INVALID, field)


async def test_questions_with_other_units_do_not_add_up(grown: Grown) -> None:
    world = grown.world
    await verifier(world, "kind", catalog_pb2.VERIFIER_KIND_OBJECTIVE, last_number="1", worded="2")
    specs = [catalog_pb2.QuestionSpec(name="three", fields={"question": "q 3", "answer": "3"})]
    request = catalog_pb2.RegisterQuestionsRequest(questions=specs, verifier="kind")
    await world.stubs.catalog.RegisterQuestions(request)
    three = await collected(
        world.stubs.trajectory.SampleTrajectories(sampling_of(world, questions=["three"]))
    )
    both = [grown.trajectory.id, three.trajectories[0].id]

    def summary(**fields: Any) -> Any:
        chosen = diagnosis_pb2.NodeOptions(**fields)
        return world.stubs.diagnosis.SummarizeAlignments(
            diagnosis_pb2.SummarizeAlignmentsRequest(
                trajectories=both, teachers=["teacher"], options=chosen
            )
        )

    await refused(summary(), INVALID, "trajectories[1]")
    await refused(comparison(grown, "own", "long", trajectories=both), INVALID, "trajectories[1]")
    assert (await summary(verifier="kind")).summaries
    # A growth has one objective; these questions have verifiers of their own.
    targets = [growth_pb2.GrowthTarget(trajectory=name) for name in both]
    for objective, works in (({"own": 1.0, "long": 1.0}, False), ({"long": 2.0}, True)):
        call = world.stubs.growth.StartGrowth(
            growth_of(*targets, request_id=f"both-{works}", options=options(objective))
        )
        if works:
            await call
        else:
            await refused(call, INVALID, "options.objective")


async def test_a_demonstration_is_a_correct_one_whatever_the_objective(world: World) -> None:
    await verifier(world, "long", catalog_pb2.VERIFIER_KIND_LENGTH, limit="4")
    await world.stubs.catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="own", base_policy="student", context=catalog_pb2.Context(name="own_correct")
        )
    )
    _, second, *_ = await two_correct(world)
    found = []
    for objective in ({"own": 1.0}, {"long": -1.0}):
        request = diagnosis_pb2.GetAlignmentRequest(
            node=at(second.id, 0), teachers=["own"], options=options(objective)
        )
        answer = await world.stubs.diagnosis.GetAlignment(request)
        found.append((answer.node.rollouts, answer.alignments[0].divergence))
    assert found[0] == found[1]


async def test_what_cannot_be_compared_is_refused(grown: Grown) -> None:
    await refused(comparison(grown, "own"), INVALID, "objectives")
    await refused(comparison(grown, *["own"] * 9), INVALID, "objectives")
    await refused(comparison(grown, "own", "last_number"), INVALID, "objectives[1]")
    await refused(comparison(grown, "own", "nobody"), NOT_FOUND, "nobody")
    await refused(comparison(grown, "own", "score"), PRECONDITION, "score")
    chosen = diagnosis_pb2.NodeOptions(verifier="long")
    await refused(comparison(grown, "own", "long", options=chosen), INVALID, "options")
    both = diagnosis_pb2.NodeOptions(verifier="long", objective=parse_terms({"own": 1.0}))
    request = diagnosis_pb2.GetNodeRequest(node=prefix(), options=both)
    await refused(grown.world.stubs.diagnosis.GetNode(request), INVALID, "options.verifier")
    mixed = diagnosis_pb2.Objective(verifier="long", terms=parse_terms({"own": 1.0}))
    await refused(comparison(grown, "own", mixed), INVALID, "objectives[1].verifier")


@pytest.mark.parametrize(
    ("kind", "options", "field"),
    [
        ("LENGTH", {}, "options['limit']"),
        ("LENGTH", {"limit": "0"}, "options['limit']"),
        ("LENGTH", {"limit": "4", "truncated": "grade"}, "options['truncated']"),
        ("FORMAT", {"pattern": "("}, "options['pattern']"),
        ("EXTERNAL", {}, "options['source']"),
        ("OBJECTIVE", {}, "options"),
        ("OBJECTIVE", {"last_number": "much"}, "options['last_number']"),
        ("OBJECTIVE", {"": "1"}, "options['']"),
    ],
)
async def test_verifiers_that_mean_nothing_are_refused(
    world: World, kind: str, options: dict[str, str], field: str
) -> None:
    request = catalog_pb2.RegisterVerifierRequest(kind=f"VERIFIER_KIND_{kind}", options=options)
    await refused(world.stubs.catalog.RegisterVerifier(request), INVALID, field)

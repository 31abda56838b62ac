"""Keyword arguments in, messages out; the same for both clients."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import unmask
from unmask.calls import Paged, Streamed, Unary
from unmask.requests import cache, catalog, diagnosis, growth, trajectory
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, sharing_pb2, trajectory_pb2

from tests.client.scripted import METHODS, ScriptedServer

BUILDERS = {
    name: build
    for module in (catalog, trajectory, diagnosis, growth, cache)
    for name, build in vars(module).items()
    if inspect.isfunction(build) and build.__module__ == module.__name__ and name[0] != "_"
}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "register_policy": ("model",), "get_policy": ("p",), "register_teacher": ("model",),
    "get_teacher": ("t",), "register_questions": ([],), "get_question": ("q",),
    "register_verifier": ("boxed",), "sample_trajectories": ("p", ["q"]),
    "get_trajectory": ("trj-1",), "trajectory_alignments": ("trj-1",), "summarize": ("trj-1",),
    "compare_groups": ({"a": "trj-1", "b": "trj-2"},),
    "start_growth": ("trj-1",), "predict_growth": ("trj-1",), "get_growth": ("gro-1",),
    "watch_growth": ("gro-1",), "put_teacher_distributions": ("t", []),
    "cancel_growth": ("gro-1",), "regrade": ("p", "q", "v"),
    "compare_objectives": ("trj-1", ["a", "b"]), "list_rollouts": ("p", "q"),
    "pause_growth": ("gro-1",), "resume_growth": ("gro-1",), "extend_growth": ("gro-1",),
    "put_outcomes": ("v", {"r": 0.5}), "import_cache": (sharing_pb2.CacheRecords(),),
    "import_generations": ("p", []),
}  # fmt: skip
KEYWORDS: dict[str, dict[str, Any]] = {
    "preview_prompt": {"question": "q", "policy": "p"},
    "submit_trajectory": {"policy": "p", "question": "q", "text": "4"},
    "get_node": {"trajectory": "trj-1", "position": 0},
    "ideal_gradient": {"trajectory": "trj-1", "position": 0},
    "alignment": {"trajectory": "trj-1", "position": 0},
    "predict_growth": {"half_width": 0.1},
    "extend_growth": {"half_width": 0.05},
    "import_generations": {"run": "r", "temperature": 1.0, "max_new_tokens": 8},
}


def build(name: str) -> Unary[Any] | Paged[Any] | Streamed[Any]:
    call: Unary[Any] | Paged[Any] | Streamed[Any] = BUILDERS[name](
        *ARGUMENTS.get(name, ()), **KEYWORDS.get(name, {})
    )
    return call


def test_every_call_of_the_contract_has_exactly_one_function() -> None:
    calls = {name: build(name) for name in BUILDERS}
    assert sorted(call.path for call in calls.values()) == sorted(METHODS)
    for call in calls.values():
        method = METHODS[call.path]
        assert type(call.request).DESCRIPTOR is method.input_type
        assert call.response.DESCRIPTOR is method.output_type
        assert isinstance(call, Streamed) == method.server_streaming


@pytest.mark.parametrize("kind", [unmask.Client, unmask.AsyncClient])
def test_both_clients_have_every_function_as_a_documented_method(kind: type) -> None:
    for name, function in BUILDERS.items():
        method = getattr(kind, name)
        assert method.__doc__ == function.__doc__
        assert list(inspect.signature(method).parameters) == [
            "self",
            *inspect.signature(function).parameters,
        ]


def test_a_policy_is_registered_with_what_was_said_and_nothing_else(
    server: ScriptedServer, client: unmask.Client
) -> None:
    server.answer(
        "RegisterPolicy",
        catalog_pb2.RegisterPolicyResponse(
            policy=catalog_pb2.Policy(id="pol-1"), warnings=["no BOS"]
        ),
    )
    answer = client.register_policy(
        Path("models/a"), temperature=0.7, stop_texts="\n", prompt_template="Q: {{ content }}"
    )
    assert answer.policy.id == "pol-1"
    assert list(answer.warnings) == ["no BOS"]
    (request,) = server.requests("RegisterPolicy")
    assert request == catalog_pb2.RegisterPolicyRequest(
        model=str(Path("models/a").absolute()),
        sampling=catalog_pb2.Sampling(temperature=0.7),
        stop_texts=["\n"],
        prompting=catalog_pb2.Prompting(
            style=catalog_pb2.PROMPT_STYLE_RAW, template="Q: {{ content }}"
        ),
    )


def test_resources_are_named_by_id_by_name_or_by_message(
    server: ScriptedServer, client: unmask.Client
) -> None:
    sampled = trajectory_pb2.SampleTrajectoriesResponse(
        trajectories=[trajectory_pb2.Trajectory()] * 2, sampled=2
    )
    server.answer("SampleTrajectories", [sampled])
    policy = catalog_pb2.Policy(id="pol-1", name="student")
    question = catalog_pb2.Question(id="que-1")
    assert client.sample_trajectories(policy, [question, "easy"], count=2, seed=7).sampled == 2
    client.sample_trajectories("student", question)
    first, second = server.requests("SampleTrajectories")
    assert first == trajectory_pb2.SampleTrajectoriesRequest(
        policy="pol-1", questions=["que-1", "easy"], count=2, seed=7
    )
    assert second == trajectory_pb2.SampleTrajectoriesRequest(
        policy="student", questions=["que-1"], count=1
    )


def test_questions_come_from_mappings_or_from_a_file(
    server: ScriptedServer, client: unmask.Client, tmp_path: Path
) -> None:
    result = catalog_pb2.RegisteredQuestion(
        index=0, error=catalog_pb2.QuestionError(field="answer", message="no number")
    )
    server.answer("RegisterQuestions", catalog_pb2.RegisterQuestionsResponse(results=[result]))
    file = tmp_path / "q.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"question": "1+1?", "answer": 2}\r\n')
    assert client.register_questions(file) == [result]
    client.register_questions([{"name": "a", "question": "1+1?", "answer": 2, "hint": None}])
    client.register_questions([{"prompt_tokens": [1, 2], "answer": "2"}], verifier="boxed")
    from_file, mapping, tokens = server.requests("RegisterQuestions")
    assert from_file.jsonl == file.read_bytes()
    assert mapping.questions[0].name == "a"
    assert dict(mapping.questions[0].fields) == {"question": "1+1?", "answer": "2"}
    assert list(tokens.questions[0].prompt_tokens) == [1, 2]
    assert tokens.verifier == "boxed"
    with pytest.raises(ValueError, match=r"questions\[0\]\.prompt: list is no text"):
        client.register_questions([{"prompt": [{"role": "user"}]}])


def test_a_node_is_named_by_trajectory_or_by_prefix(
    server: ScriptedServer, client: unmask.Client
) -> None:
    server.answer("GetAlignment", diagnosis_pb2.GetAlignmentResponse())
    client.alignment(trajectory="trj-1", position=0, teachers="big", algorithms="opd")
    client.alignment(
        policy="p", question="q", prefix=[5, 6], observed_token=0, teachers=["a", "b"],
        algorithms=["jsd:0.3", diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_GRPO)], top_k=5,
        min_coverage=0.0, latest=True,
    )  # fmt: skip
    client.alignment(policy="p", question="q", prefix="3 + 4")
    client.alignment(policy="p", question="q")
    by_position, by_tokens, by_text, root = server.requests("GetAlignment")
    assert by_position.node.trajectory.trajectory == "trj-1"
    assert list(by_position.teachers) == ["big"]
    assert by_position.algorithms[0].form == diagnosis_pb2.FORM_SAMPLED
    assert not by_position.options.HasField("min_coverage")
    assert list(by_tokens.node.prefix.tokens.ids) == [5, 6]
    assert by_tokens.node.prefix.HasField("observed_token")
    assert by_tokens.options.HasField("min_coverage")
    assert by_tokens.options.freshness == diagnosis_pb2.FRESHNESS_LATEST
    assert [algorithm.loss for algorithm in by_tokens.algorithms] == [
        diagnosis_pb2.LOSS_JSD,
        diagnosis_pb2.LOSS_GRPO,
    ]
    assert by_text.node.prefix.text == "3 + 4"
    assert root.node.prefix.WhichOneof("prefix") is None


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"trajectory": "t"}, "position: say which token"),
        ({"trajectory": "t", "position": 1, "prefix": [1]}, "prefix: not together"),
        ({"policy": "p"}, "policy and question"),
        ({"policy": "p", "question": "q", "position": 1}, "position: only with"),
    ],
)
def test_half_named_nodes_are_refused_before_anything_is_sent(
    node: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        unmask.node(**node)


def test_lists_go_on_over_pages_and_fetch_no_page_that_nobody_needs(
    server: ScriptedServer, client: unmask.Client
) -> None:
    def page(request: catalog_pb2.ListPoliciesRequest, context: grpc.ServicerContext) -> Any:
        start = int(request.page_token or 0)
        return catalog_pb2.ListPoliciesResponse(
            policies=[catalog_pb2.Policy(id=f"pol-{i}") for i in range(start, start + 2)],
            next_page_token=str(start + 2) if start < 4 else "",
        )

    server.answer("ListPolicies", page)
    assert [p.id for p in client.list_policies(page_size=2)] == [f"pol-{i}" for i in range(6)]
    assert len(server.requests("ListPolicies")) == 3
    next(client.list_policies())
    assert len(server.requests("ListPolicies")) == 4


def test_growth_targets_may_be_trajectories_nodes_and_questions(
    server: ScriptedServer, client: unmask.Client
) -> None:
    server.answer("StartGrowth", growth_pb2.StartGrowthResponse())
    client.grow(
        [
            trajectory_pb2.Trajectory(id="trj-1"),
            "trj-2",
            unmask.node(trajectory="trj-3", position=4),
            unmask.question_target("p", "q"),
        ],
        rollouts=100,
        request_id="mine",
    )
    client.grow("trj-1", tokens=5, allocation="equal")
    client.grow("trj-1", tokens=5)
    mine, other, third = server.requests("StartGrowth")
    assert [target.WhichOneof("target") for target in mine.targets] == [
        "trajectory", "trajectory", "node", "question",
    ]  # fmt: skip
    assert mine.request_id == "mine"
    assert mine.allocation == growth_pb2.ALLOCATION_ADAPTIVE
    assert not mine.HasField("precision")
    assert not mine.budget.HasField("tokens")
    assert other.allocation == growth_pb2.ALLOCATION_EQUAL
    assert len({mine.request_id, other.request_id, third.request_id}) == 3
    with pytest.raises(
        ValueError, match="allocation: 'even' is none of adaptive, policy, equal, depth_windows"
    ):
        client.grow("trj-1", tokens=5, allocation="even")  # type: ignore[arg-type]


def test_a_precision_is_sent_if_a_half_width_is_given(
    server: ScriptedServer, client: unmask.Client
) -> None:
    server.answer("StartGrowth", growth_pb2.StartGrowthResponse())
    predicted = growth_pb2.PredictGrowthResponse(nodes=3, nodes_settled=1)
    server.answer("PredictGrowth", predicted)
    asked: dict[str, Any] = {
        "teachers": ["a", "b"], "algorithms": "opd,dr_grpo", "half_width": 0.05,
        "statistic": "ranking", "flat_norm": 0.0, "confidence": 0.99, "top_k": 5,
    }  # fmt: skip
    client.grow("trj-1", rollouts=9, allocation="depth_windows", **asked)
    client.grow("trj-1", rollouts=9, half_width=0.1)
    assert client.predict_growth("trj-1", **asked) == predicted
    ranking, cosine = server.requests("StartGrowth")
    assert ranking.allocation == growth_pb2.ALLOCATION_DEPTH_WINDOWS
    assert ranking.precision == growth_pb2.Precision(
        statistic=growth_pb2.STATISTIC_RANKING, half_width=0.05, flat_norm=0.0, confidence=0.99
    )
    assert [a.loss for a in ranking.algorithms] == [
        diagnosis_pb2.LOSS_REVERSE_KL,
        diagnosis_pb2.LOSS_DR_GRPO,
    ]
    assert cosine.precision.statistic == growth_pb2.STATISTIC_COSINE
    assert not cosine.precision.HasField("flat_norm")
    assert not cosine.precision.HasField("confidence")
    (prediction,) = server.requests("PredictGrowth")
    for field in ("targets", "teachers", "options", "algorithms", "precision"):
        assert getattr(prediction, field) == getattr(ranking, field)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"statistic": "ranking"}, "half_width: say how precise to make the ranking"),
        ({"confidence": 0.9}, "half_width: say how precise to make the cosine"),
        ({"flat_norm": 0.0}, "half_width: say how precise"),
        ({"statistic": "mean", "half_width": 0.1}, "statistic: 'mean' is none of cosine, mean_"),
    ],
)
def test_half_of_a_precision_is_refused_before_anything_is_sent(
    client: unmask.Client, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        client.grow("trj-1", rollouts=9, **asked)


def test_grow_tells_what_start_growth_tells() -> None:
    for kind in (unmask.Client, unmask.AsyncClient):
        assert kind.grow.__name__ == "grow"
        assert "get a handle on it" in (kind.grow.__doc__ or "")
        assert "half_width: for `adaptive`" in (kind.grow.__doc__ or "")
        assert list(inspect.signature(kind.grow).parameters) == [
            "self",
            *inspect.signature(growth.start_growth).parameters,
        ]


async def test_the_asyncio_client_does_the_same(server: ScriptedServer) -> None:
    growing = growth_pb2.Growth(id="gro-1", state=growth_pb2.GROWTH_STATE_RUNNING)
    done = growth_pb2.Growth(id="gro-1", state=growth_pb2.GROWTH_STATE_SUCCEEDED)
    server.answer("ListPolicies", catalog_pb2.ListPoliciesResponse(
        policies=[catalog_pb2.Policy(id="pol-1")]))  # fmt: skip
    server.answer("StartGrowth", growth_pb2.StartGrowthResponse(growth=growing))
    server.answer(
        "WatchGrowth", [growth_pb2.WatchGrowthResponse(growth=g) for g in (growing, done)]
    )
    async with unmask.AsyncClient(server.address) as client:
        await client.wait_ready()
        assert [policy.id async for policy in client.list_policies()] == ["pol-1"]
        handle = await client.grow("trj-1", rollouts=1)
        assert await handle.wait() == done
        with pytest.raises(unmask.UnmaskError, match="GetPolicy is not scripted"):
            await client.get_policy("pol-1")


def test_importing_unmask_loads_nothing_heavy() -> None:
    code = (
        "import sys, unmask; "
        "assert 'grpc' not in sys.modules; unmask.Client; "
        "heavy = {'numpy', 'torch', 'rich', 'typer', 'transformers', 'sqlalchemy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""A filled server to begin with, and a valid request for every RPC."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from tests.e2e.conftest import Stubs, fill
from tests.fuzz.rpcs import Rpc
from tests.tiny import byte_bpe, save, word_level

_PREFIX = {"prefix": {"policy": "student", "question": "one", "tokens": {"ids": [4, 5]}}}
_ALGORITHMS = [
    {"loss": "LOSS_REVERSE_KL"},
    {"loss": "LOSS_JSD", "beta": 0.3, "temperature": 2.0, "topK": 5},
    {"loss": "LOSS_DR_GRPO"},
    {"loss": "LOSS_FORWARD_KL", "rewardWeight": 0.5, "tokenClip": 1.0},
    {"loss": "LOSS_MINILLM", "ratioClip": 2.0, "studentShare": 0.5},
]
_TEACHERS = ["teacher", "self-answer"]
_OPTIONS = {"topK": 10, "minCoverage": 0.5, "freshness": "FRESHNESS_LATEST"}
_JSONL = base64.b64encode(b'{"question": "q 3 1", "answer": "#### 3"}\n').decode()

# `$trajectory` and `$growth` stand for one that the server has.
_ALIGNED = {"teachers": _TEACHERS, "algorithms": _ALGORITHMS, "options": _OPTIONS}
_GROWN = {
    "targets": [{"node": _PREFIX}, {"trajectory": "$trajectory"}],
    "teachers": ["teacher"],
    "precision": {"statistic": "STATISTIC_MEAN_COSINE", "halfWidth": 0.4},
}
SEEDS: list[tuple[str, dict[str, Any]]] = [
    (
        "SampleTrajectories",
        {"policy": "student", "questions": ["one", "two"], "count": 3, "seed": 5},
    ),
    ("SubmitTrajectory", {"policy": "student", "question": "one", "tokens": {"ids": [4, 5, 0]}}),
    ("SubmitTrajectory", {"policy": "student", "question": "one", "text": "a so #### 3"}),
    ("GetTrajectory", {"trajectory": "$trajectory"}),
    ("ListTrajectories", {"policy": "student", "pageSize": 2}),
    (
        "RegisterPolicy",
        {
            "name": "pupil",
            "model": "$student",
            "maxNewTokens": 5,
            "sampling": {
                "temperature": 0.8,
                "topK": 9,
                "topP": 0.95,
                "cutOrder": "CUT_ORDER_TOP_K_FIRST",
            },
            "stopTexts": ["."],
            "prompting": {"style": "PROMPT_STYLE_RAW", "template": "{{ content }} a :"},
        },
    ),
    ("RegisterPolicy", {"model": "$other", "maxNewTokens": 12}),
    ("RegisterPolicy", {"model": "$student", "endpoints": ["http://127.0.0.1:1"]}),
    ("GetPolicy", {"policy": "student"}),
    ("ListPolicies", {"pageSize": 1}),
    (
        "RegisterTeacher",
        {
            "name": "hinted",
            "basePolicy": "student",
            "context": {"name": "told", "template": "{{ question }} so {{ answer }}"},
        },
    ),
    (
        "RegisterTeacher",
        {"baseTeacher": "teacher", "control": "CONTROL_PERMUTED", "name": "permuted"},
    ),
    ("RegisterTeacher", {"basePolicy": "student", "control": "CONTROL_FLATTENED"}),
    ("RegisterTeacher", {"stored": "a file", "policies": ["student"], "name": "filed"}),
    (
        "RegisterTeacher",
        {
            "basePolicy": "student",
            "context": {
                "name": "own",
                "template": "{{ question }}{% if own_correct is defined %} a{% endif %}",
            },
        },
    ),
    ("GetTeacher", {"teacher": "teacher"}),
    ("ListTeachers", {"pageSize": 1}),
    (
        "PutTeacherDistributions",
        {
            "teacher": "filed",
            "distributions": [
                {"question": "one", "prefix": [4], "ids": [5, 6], "logprobs": [-0.7, -0.8]},
                {"trajectory": "$trajectory", "position": 0, "ids": [4], "logprobs": [-0.1]},
            ],
        },
    ),
    ("PreviewPrompt", {"policy": "student", "teacher": "self-answer", "question": "two"}),
    (
        "RegisterQuestions",
        {
            "questions": [
                {"name": "three", "fields": {"question": "q 3", "answer": "3", "hint": "1"}},
                {"fields": {"answer": "2"}, "promptTokens": [2, 6, 4]},
            ],
            "task": "sums",
        },
    ),
    ("RegisterQuestions", {"jsonl": _JSONL, "verifier": "hash_answer"}),
    ("RegisterQuestions", {"reasoningGym": {"dataset": "chain_sum", "size": 2, "seed": 1}}),
    ("GetQuestion", {"question": "one"}),
    ("ListQuestions", {"pageSize": 1}),
    (
        "RegisterVerifier",
        {"name": "given", "kind": "VERIFIER_KIND_EXTERNAL", "options": {"source": "a judge"}},
    ),
    ("RegisterVerifier", {"kind": "VERIFIER_KIND_REGEX", "options": {"pattern": "#### (\\d+)"}}),
    (
        "RegisterVerifier",
        {"kind": "VERIFIER_KIND_OBJECTIVE", "options": {"last_number": "1", "exact": "-0.5"}},
    ),
    (
        "RegisterVerifier",
        {"name": "short", "kind": "VERIFIER_KIND_LENGTH", "options": {"limit": "5"}},
    ),
    ("ListVerifiers", {"pageSize": 1}),
    ("GetNode", {"node": _PREFIX, "teachers": _TEACHERS, "options": _OPTIONS}),
    (
        "GetNode",
        {
            "node": {"trajectory": {"trajectory": "$trajectory"}},
            "options": {
                "objective": [
                    {"verifier": "last_number", "weight": 1.0},
                    {"verifier": "short", "weight": -0.3},
                ]
            },
        },
    ),
    ("GetIdealGradient", {"node": _PREFIX, "teachers": ["teacher"]}),
    ("GetAlignment", {"node": {"trajectory": {"trajectory": "$trajectory"}}, **_ALIGNED}),
    ("GetAlignment", {"node": _PREFIX, "teachers": [*_TEACHERS, "permuted"]}),
    ("StreamTrajectoryAlignments", {"trajectory": "$trajectory", **_ALIGNED}),
    ("SummarizeAlignments", {"trajectories": ["$trajectory"], **_ALIGNED}),
    (
        "CompareGroups",
        {
            "groups": [
                {"name": "a", "trajectories": ["$trajectory"]},
                {"name": "b", "trajectories": ["$trajectory2"]},
            ],
            "teachers": _TEACHERS,
        },
    ),
    (
        "CompareObjectives",
        {
            "trajectories": ["$trajectory"],
            "teachers": _TEACHERS,
            "objectives": [{"verifier": "last_number"}, {"verifier": "exact"}],
        },
    ),
    ("PredictGrowth", _GROWN),
    (
        "StartGrowth",
        {
            "requestId": "first",
            "budget": {"rollouts": "20"},
            "rolloutsPerNode": "4",
            "allocation": "ALLOCATION_EQUAL",
            "targets": [{"trajectory": "$trajectory"}],
        },
    ),
    ("StartGrowth", {"requestId": "second", "budget": {"tokens": "50"}, **_GROWN}),
    (
        "StartGrowth",
        {
            "requestId": "third",
            "budget": {"rollouts": "8"},
            "targets": [{"question": {"policy": "student", "question": "two"}}],
            "allocation": "ALLOCATION_POLICY",
        },
    ),
    ("GetGrowth", {"growth": "$growth"}),
    (
        "StartGrowth",
        {
            "requestId": "fourth",
            "budget": {"rollouts": "40"},
            "targets": [{"question": {"policy": "student", "question": "one"}}],
            "allocation": "ALLOCATION_POLICY",
        },
    ),
    ("PauseGrowth", {"growth": "$growth"}),
    ("ListGrowths", {"pageSize": 1, "states": ["GROWTH_STATE_SUCCEEDED"], "policy": "student"}),
    ("ResumeGrowth", {"growth": "$growth"}),
    ("ExtendGrowth", {"growth": "$growth", "budget": {"rollouts": "40"}}),
    ("WatchGrowth", {"growth": "$growth"}),
    ("CancelGrowth", {"growth": "$growth"}),
    ("GetStatistics", {}),
    ("RegradeRollouts", {"policy": "student", "question": "one", "verifier": "exact"}),
    ("ListRollouts", {"policy": "student", "question": "one", "missing": "given", "pageSize": 3}),
    ("PutOutcomes", {"verifier": "given", "outcomes": [{"rollout": "$trajectory", "reward": 0.5}]}),
    (
        "ExportCache",
        {
            "kinds": ["EXPORT_KIND_ROLLOUTS", "EXPORT_KIND_TRAJECTORIES"],
            "policy": "student",
            "questions": ["one"],
        },
    ),
    (
        "ExportCache",
        {
            "kinds": ["EXPORT_KIND_ESTIMATES"],
            "questions": ["two"],
            "policy": "student",
            "teachers": ["teacher"],
        },
    ),
    ("ImportCache", {"records": "$records"}),
    (
        "ImportGenerations",
        {
            "policy": "student",
            "run": "r",
            "sampling": {"temperature": 1.0},
            "maxNewTokens": 6,
            "scored": 3,
            "tolerance": 1.0,
            "generations": "$generations",
        },
    ),
    ("Check", {}),
    ("Watch", {}),
]
"""By method, as JSON; in an order in which they can be sent. What the contract no longer has is
left out: which methods are answered at all, the table says."""


@dataclass
class Known:
    """What seeds refer to."""

    models: Path
    trajectory: str = ""
    trajectory2: str = ""
    growth: str = ""
    records: Any = None
    generations: Any = None
    """Of the student, as a trainer would have them."""


def make_models(folder: Path) -> list[Path]:
    """Models that work together, one that does not, and folders that hold none."""
    save(folder / "student", word_level(), seed=1, scale=3.0)
    save(folder / "teacher", word_level(), seed=2, scale=3.0, padding=3)
    save(folder / "other", byte_bpe(), kind="llama", seed=3)
    (folder / "empty").mkdir()
    for name, config in {
        "torn": "{",
        "list": "[]",
        "wide": json.dumps({"vocab_size": 2**70, "architectures": 5}),
        "lone": json.dumps({"vocab_size": 3, "architectures": ["\ud800"]}),
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config)
    (folder / "lone" / "model.safetensors").write_bytes(b"\xff" * 100)
    return sorted(path for path in folder.iterdir() if path.is_dir())


async def fill_server(channel: grpc.aio.Channel, models: Path) -> None:
    """What the seeds name."""
    world: Any = SimpleNamespace(stubs=Stubs(channel))
    await fill(world, models)


def seed(rpc: Rpc, given: dict[str, Any], known: Known) -> Message:
    """The request that a seed is; what the contract does not have is left out."""
    message = rpc.new_request()
    json_format.ParseDict(_filled(given, known), message, ignore_unknown_fields=True)
    return message


def _filled(part: Any, known: Known) -> Any:
    if isinstance(part, dict):
        return {key: _filled(value, known) for key, value in part.items()}
    if isinstance(part, list):
        return [_filled(value, known) for value in part]
    if not isinstance(part, str) or not part.startswith("$"):
        return part
    name = part[1:]
    return getattr(known, name) if hasattr(known, name) else str(known.models / name)

"""Fill a store through a server of whatever revision this runs with, and write it down.

    PYTHONPATH=client:server python make.py OUT.jsonl.gz

run in a checkout of the last commit of a revision of the schema. The first line of OUT says at what
revision the store is and what the server of that revision answered; every other line is a row, in
an order in which they can be inserted. It uses only what every revision of the API has, and where
there is more, that as well. The last growth is still running when the server is killed.

Make one before you add a revision.
"""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from unmask.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    diagnosis_pb2,
    diagnosis_pb2_grpc,
    growth_pb2,
    growth_pb2_grpc,
    trajectory_pb2,
    trajectory_pb2_grpc,
)

TABLES = ("model", "verifier", "policy", "teacher", "question", "trajectory",
          "trajectory_outcome", "tree", "tree_verifier", "node", "node_stat", "rollout",
          "outcome", "distribution", "rollout_score", "growth", "growth_subject", "growth_client",
          "retention", "access_token", "client_total")  # fmt: skip
MODELS = Path("examples/models").resolve()
LENGTH = 12


def based_on(kind: str, name: str) -> dict[str, str]:
    """What a teacher is made from, as the API has it: once `model` took names of all kinds."""
    field = f"base_{kind}"
    known = catalog_pb2.RegisterTeacherRequest.DESCRIPTOR.fields_by_name
    return {field if field in known else "model": name}


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "unmask.db")
        socket = Path(folder, "socket")
        server = subprocess.Popen(
            [sys.executable, "-m", "unmask_server", "serve", "--database", f"sqlite:///{database}",
             "--listen", f"unix:{socket}"],
            # So that it counts what each client starts.
            env={**os.environ, "UNMASK_QUOTA_ROLLOUTS": "10000000"},
        )  # fmt: skip
        try:
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                grpc.channel_ready_future(channel).result(60)
                answers = fill(channel)
        finally:
            server.kill()
            server.wait()
        for command in (
            ["retention", "student", "--days", "30"],
            ["token", "create", "ann", "--scope", "grow"],
        ):
            # Earlier revisions know no such thing.
            subprocess.run(
                [sys.executable, "-m", "unmask_server", *command, "--database",
                 f"sqlite:///{database}"], check=False,
            )  # fmt: skip
        with sqlite3.connect(database) as connection:
            connection.row_factory = sqlite3.Row
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
            rows = [row for table in TABLES for row in rows_of(connection, table)]
    with open(out, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for line in ({"revision": revision, "answers": answers}, *rows):
            file.write(json.dumps(line).encode() + b"\n")


def fill(channel: grpc.Channel) -> list[dict[str, Any]]:
    """Everything the revision can do, a little of it. Returns what it answers of one trajectory."""
    catalog = catalog_pb2_grpc.CatalogServiceStub(channel)
    diagnosis = diagnosis_pb2_grpc.DiagnosisServiceStub(channel)
    growths = growth_pb2_grpc.GrowthServiceStub(channel)
    catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="student", model=str(MODELS / "student"), max_new_tokens=LENGTH,
            sampling=catalog_pb2.Sampling(temperature=0.7),
        )
    )  # fmt: skip
    teachers = ["strong", "told"]
    catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="strong", model=str(MODELS / "teacher-strong"), policies=["student"]
        )
    )
    catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="told", **based_on("policy", "student"), context=catalog_pb2.Context(name="answer")
        )
    )
    if hasattr(catalog_pb2, "Control"):
        for name, control, of in (
            ("flat", "CONTROL_FLATTENED", based_on("policy", "student")),
            ("permuted", "CONTROL_PERMUTED", based_on("teacher", "strong")),
        ):
            catalog.RegisterTeacher(
                catalog_pb2.RegisterTeacherRequest(
                    name=name,
                    control=catalog_pb2.Control.Value(control),
                    **of,
                )
            )
        teachers += ["flat", "permuted"]
    questions = [
        {"name": "plums", "question": "Tom has 12 plums. Then he sells 9. How many plums does he "
         "have now?", "answer": "3", "hint": "12 - 9"},
        {"name": "buns", "question": "Leo has 4 bags with 6 buns each. How many buns are left?",
         "answer": "24", "hint": "4 * 6"},
    ]  # fmt: skip
    catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            jsonl="\n".join(map(json.dumps, questions)).encode(), verifier="hash_answer"
        )
    )
    sampled = trajectory_pb2_grpc.TrajectoryServiceStub(channel).SampleTrajectories(
        trajectory_pb2.SampleTrajectoriesRequest(
            policy="student", questions=["plums", "buns"], count=2, seed=1
        )
    )
    # One message once, a stream since.
    parts = [sampled] if hasattr(sampled, "trajectories") else list(sampled)
    first = parts[0].trajectories[0]
    if hasattr(catalog_pb2, "PutTeacherDistributionsRequest"):
        catalog.RegisterTeacher(
            catalog_pb2.RegisterTeacherRequest(name="filed", stored="a file", policies=["student"])
        )
        said = [
            {"trajectory": first.id, "position": t, "ids": [token.id, (token.id + 1) % 20],
             "logprobs": [-0.5, -1.5]}
            for t, token in enumerate(first.tokens)
        ]  # fmt: skip
        catalog.PutTeacherDistributions(
            catalog_pb2.PutTeacherDistributionsRequest(
                teacher="filed", jsonl="\n".join(map(json.dumps, said)).encode()
            )
        )
        teachers.append("filed")
    target = growth_pb2.GrowthTarget(trajectory=first.id)
    for allocation in growth_pb2.Allocation.values()[1:]:
        run(
            growths,
            request_id=f"allocation {allocation}",
            targets=[target],
            teachers=["strong", "told"],
            allocation=allocation,
            rollouts_per_node=4,
            budget=growth_pb2.Budget(rollouts=40),
        )
    asked = [(teachers, "LOSS_REVERSE_KL"), (["strong"], "LOSS_MINILLM")]
    answers = [
        MessageToDict(answer)
        for names, loss in asked
        if loss in diagnosis_pb2.Loss.keys()  # noqa: SIM118
        for answer in diagnosis.StreamTrajectoryAlignments(
            diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
                trajectory=first.id,
                teachers=names,
                algorithms=[diagnosis_pb2.Algorithm(loss=diagnosis_pb2.Loss.Value(loss))],
            )
        )
    ]
    stopped = growth_pb2.StartGrowthRequest(
        request_id="stopped",
        targets=[target_of("buns")],
        rollouts_per_node=100_000,
        allocation=growth_pb2.ALLOCATION_POLICY,
        budget=growth_pb2.Budget(rollouts=100_000),
    )
    id_ = growths.StartGrowth(stopped).growth.id
    growths.CancelGrowth(growth_pb2.CancelGrowthRequest(growth=id_))
    running = growth_pb2.StartGrowthRequest(
        request_id="running",
        targets=[target_of("buns")],
        rollouts_per_node=2000,
        allocation=growth_pb2.ALLOCATION_POLICY,
        budget=growth_pb2.Budget(rollouts=2000),
    )
    id_ = growths.StartGrowth(running).growth.id
    for progress in growths.WatchGrowth(growth_pb2.WatchGrowthRequest(growth=id_)):
        if progress.growth.rollouts_sampled:
            break
    return answers


def target_of(question: str) -> growth_pb2.GrowthTarget:
    return growth_pb2.GrowthTarget(
        question=growth_pb2.QuestionTarget(policy="student", question=question)
    )


def run(growths: growth_pb2_grpc.GrowthServiceStub, **request: Any) -> None:
    started = growths.StartGrowth(growth_pb2.StartGrowthRequest(**request))
    for progress in growths.WatchGrowth(growth_pb2.WatchGrowthRequest(growth=started.growth.id)):
        last = progress.growth
    assert last.state == growth_pb2.GROWTH_STATE_SUCCEEDED, last


def rows_of(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    if known is None:
        return []
    rows = connection.execute(f"SELECT * FROM {table}")
    return [{"table": table, "row": {k: kept(row[k]) for k in row.keys()}} for row in rows]  # noqa: SIM118


def kept(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    prefix = f"{MODELS}{os.sep}"
    if isinstance(value, str) and value.startswith(prefix):
        return {"model": value.removeprefix(prefix)}
    return value


if __name__ == "__main__":
    main(Path(sys.argv[1]))

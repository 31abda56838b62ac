"""No line of the log, no metric and no error holds a secret, or what a client sent."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server import logs
from unmask_server.database.connect import query
from unmask_server.telemetry import calls

from tests.e2e.conftest import World, fill
from tests.e2e.test_main_job import growth_of
from tests.stores import new_database
from tests.telemetry.conftest import telling

TOKEN, PASSWORD, PROMPT = "canary-token-1f", "canary-password-2e", "canaryprompt3d"
METADATA = [("authorization", f"Bearer {TOKEN}")]


@pytest.mark.slow
async def test_secrets_and_prompts_are_told_to_nobody(
    tmp_path: Path, models: Path, postgresql_shared_url: str
) -> None:
    # This PostgreSQL asks for no password and takes any.
    url = make_url(new_database(postgresql_shared_url)).set(password=PASSWORD)
    errors: list[str] = []
    shown = url.render_as_string(hide_password=False)
    async with telling(tmp_path, shown, UNMASK_ACCESS_LOG="all") as told:
        stubs = told.stubs
        await fill(World(stubs, "", None, None), models)  # type: ignore[arg-type]

        async def call(method: Any, request: Any) -> Any:
            try:
                return await method(request, metadata=METADATA)
            except grpc.aio.AioRpcError as error:
                errors.append(f"{error.code().name} {error.details()} {error.trailing_metadata()}")
                return None

        rows = [
            {"name": "secret", "question": f"{PROMPT} 1 2", "answer": PROMPT, "hint": PROMPT},
            {"name": "secret-too", "question": f"{PROMPT} 1 2", "answer": "3", "level": [PROMPT]},
        ]
        jsonl = "\n".join(map(json.dumps, rows)).encode()
        register = stubs.catalog.RegisterQuestions
        await call(register, catalog_pb2.RegisterQuestionsRequest(jsonl=jsonl, verifier="text"))
        await call(
            register, catalog_pb2.RegisterQuestionsRequest(jsonl=jsonl, verifier="last_number")
        )
        await call(register, catalog_pb2.RegisterQuestionsRequest(jsonl=jsonl[:-9]))
        teacher = catalog_pb2.RegisterTeacherRequest(
            name="told", model="student",
            context=catalog_pb2.Context(name="hint", template=f"{PROMPT} {{{{ nothing.there }}}}"),
        )  # fmt: skip
        await call(stubs.catalog.RegisterTeacher, teacher)
        for name in ("told", "self-answer", "nobody"):
            await call(
                stubs.catalog.PreviewPrompt,
                catalog_pb2.PreviewPromptRequest(teacher=name, question="secret-too"),
            )
        submitted = trajectory_pb2.SubmitTrajectoryRequest(
            policy="student", question="secret-too", text=f"{PROMPT} so #### 1"
        )
        await call(stubs.trajectory.SubmitTrajectory, submitted)
        node = diagnosis_pb2.NodeRef(
            prefix=diagnosis_pb2.PrefixNode(policy="student", question="secret-too", text=PROMPT)
        )
        for teachers in ([], ["teacher"], ["told"]):
            await call(
                stubs.diagnosis.GetAlignment,
                diagnosis_pb2.GetAlignmentRequest(node=node, teachers=teachers),
            )
        grown = growth_of(
            growth_pb2.GrowthTarget(node=node), request_id="secret", rollouts_per_node=4
        )
        started = await call(stubs.growth.StartGrowth, grown)
        if started is not None:
            watch = stubs.growth.WatchGrowth(
                growth_pb2.WatchGrowthRequest(growth=started.growth.id)
            )
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in watch:
                    pass
        logged, scraped = told.log.read_text(), told.scraped()
    codes = [json.loads(line).get("code") for line in logged.splitlines()]
    assert codes.count("OK") > 10
    assert errors
    for secret in (TOKEN, PASSWORD):
        for where in (logged, scraped, *errors):
            assert secret not in where
    for where in (logged, scraped):
        assert PROMPT not in where


def test_an_error_of_the_database_has_no_values(database: Engine) -> None:
    statement = text("SELECT no_such_column FROM tree WHERE id = :value")
    with pytest.raises(DBAPIError) as caught:
        query(database, lambda c: c.execute(statement, {"value": PROMPT}))
    assert PROMPT not in str(caught.value)


def traceback_of(error: Exception) -> str:
    try:
        raise error
    except Exception as raised:
        return logs._traceback((type(raised), raised, raised.__traceback__))


def test_of_an_unforeseen_error_the_requests_words_are_not_logged() -> None:
    call = calls.begin(())
    call.request = b"\x0a\x20" + f"Why is {PROMPT} so?".encode()
    told = traceback_of(ValueError(f"cannot make {PROMPT!r} of it\nDETAIL: row ({PROMPT})"))
    assert told.splitlines()[-1] == "ValueError: cannot make '…' of it"
    assert "test_secrets.py" in told


def test_of_an_error_with_a_cause_both_are_told() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as error:
        told = logs._traceback((type(error), error, error.__traceback__))
    assert told.index("KeyError: 'inner'") < told.index("RuntimeError: outer")

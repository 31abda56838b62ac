"""The page of docs/clients.md in a real browser, through Envoy, at a real server."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import unmask

from tests.clients.conftest import Server, free_port
from tests.clients.guide import Section, needs, section, shell

pytestmark = pytest.mark.clients

QUESTIONS = [
    {
        "name": "plums",
        "question": "Tom has 12 plums. First he finds 8, then he sells 9. "
        "How many plums does he have now?",
        "answer": "11",
    },
    {
        "name": "buns",
        "question": "Leo has 4 bags with 6 buns each. Then he loses 3. How many buns are left?",
        "answer": "21",
    },
]
TEACHERS = ["strong", "verbose", "told"]
COUNT = 4
LISTENS = "starting main dispatch loop"
"""What Envoy's log says once it does."""


@pytest.fixture(scope="module")
def stored(server: Server) -> Server:
    """A server with generations, the first of which was grown a little."""
    with unmask.Client(server.address) as client:
        models = "examples/models"
        client.register_policy(
            f"{models}/student", name="student", temperature=0.7, max_new_tokens=80
        )
        for name in ("strong", "verbose"):
            client.register_teacher(f"{models}/teacher-{name}", name=name, policies=["student"])
        client.register_teacher(base="student", name="told", context="answer")
        client.register_questions(QUESTIONS, verifier="hash_answer")
        client.sample_trajectories("student", ["plums", "buns"], count=COUNT, seed=3)
        first = next(iter(client.list_trajectories()))
        client.grow(first.id, teachers=TEACHERS, rollouts=600, request_id="page").wait()
    return server


@pytest.fixture(scope="module")
def told() -> Section:
    needs("node", "npm", "chromium")
    found = section("A page in a browser")
    shell(found.build, found.folder)
    return found


@pytest.fixture(scope="module")
def page(stored: Server, told: Section, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port where Envoy serves the page."""
    port = free_port()
    config = (told.folder / "envoy.yaml").read_text(encoding="utf-8")
    for usual, here in (("8080", str(port)), ("50051", stored.address.rpartition(":")[2])):
        assert usual in config
        config = config.replace(usual, here)
    file = tmp_path_factory.mktemp("envoy") / "envoy.yaml"
    file.write_text(config, encoding="utf-8")
    # As the guide starts it, but for the ports, and beside any other Envoy of this machine.
    command = told.run.replace("envoy.yaml", f"{file} --disable-hot-restart")
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=told.folder, stderr=subprocess.PIPE, text=True
    ) as envoy:
        assert envoy.stderr is not None
        said = envoy.stderr
        try:
            log = list(itertools.takewhile(lambda line: LISTENS not in line, said))
            assert envoy.poll() is None, "".join(log)
            rest = threading.Thread(target=lambda: [None for _ in said], daemon=True)
            rest.start()
            yield port
            envoy.terminate()
            rest.join()
        finally:
            envoy.terminate()


def test_a_person_sees_where_teachers_push(page: int, told: Section, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("UNMASK_PICTURES", tmp_path))
    pictures.mkdir(exist_ok=True, parents=True)
    said = shell(f"node look.mjs http://localhost:{page}/ {pictures}", told.folder).stdout
    found = json.loads(said)
    assert found["wrong"] == []
    assert found["generations"] == 2 * COUNT
    assert found["question"] in {question["question"] for question in QUESTIONS}
    assert list(found["blocks"]) == TEACHERS
    for counts in (*found["blocks"].values(), *found["forward"].values()):
        assert "pending" not in counts
        assert sum(counts.values()) == sum(found["blocks"]["strong"].values())
    scored = sum(found["blocks"]["strong"].get(n, 0) for n in ("helps", "hurts", "undecided"))
    assert scored == len(found["colours"]) > 0
    assert all(colour.startswith("rgb(") for colour in found["colours"])
    assert found["title"].startswith("Token ")
    assert len(found["pushes"]) == len(TEACHERS)
    assert found["candidates"] > 1
    assert list(found["fewer"]) == TEACHERS[1:]
    assert found["correct"] <= 2 * COUNT
    assert found["overflow"] == 0
    assert found["error"].startswith("TRAJECTORY_NOT_FOUND") or "trj-none" in found["error"]
    assert {file.name for file in pictures.glob("*.png")} >= {"light.png", "dark.png", "phone.png"}


def asks(port: int, method: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("localhost", port)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, "/unmask.v1.CatalogService/ListPolicies", b"\0" * 5, named)
    return connection.getresponse()


PREFLIGHT = {
    "access_control_request_method": "POST",
    "access_control_request_headers": "content-type,x-grpc-web",
}


def test_a_browser_lets_pages_of_listed_origins_call_and_no_others(page: int) -> None:
    listed = asks(page, "OPTIONS", origin="http://localhost:8888", **PREFLIGHT)
    assert listed.getheader("access-control-allow-origin") == "http://localhost:8888"
    for origin in ("http://localhost:8889", "https://example.com", "null"):
        other = asks(page, "OPTIONS", origin=origin, **PREFLIGHT)
        assert other.getheader("access-control-allow-origin") is None


def test_only_what_browsers_ask_about_first_passes(page: int) -> None:
    web = "application/grpc-web+proto"
    assert asks(page, "POST", content_type=web).getheader("grpc-status") in (None, "0")
    # What a form of another site may send unasked.
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert asks(page, "POST", content_type=content_type).status == 415
    # A name of another site that leads here.
    assert asks(page, "POST", content_type=web, host=f"example.com:{page}").status == 404

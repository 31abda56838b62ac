"""Growths that are there, by the client and by `unmask growth`."""

from __future__ import annotations

from typing import Any

import pytest
import unmask
from typer.testing import CliRunner
from unmask.cli.main import app
from unmask.requests import growth
from unmask.v1 import growth_pb2 as pb

from tests.client.scripted import ScriptedServer


def run(server: ScriptedServer, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--server", server.address], env={"COLUMNS": "120"})


def running(**options: Any) -> pb.Growth:
    return pb.Growth(
        **{
            "id": "gro-1",
            "request_id": "mine",
            "state": pb.GROWTH_STATE_RUNNING,
            "rollouts_sampled": 100,
            "budget": pb.Budget(rollouts=1000, tokens=5000),
            **options,
        }
    )


def test_an_extension_says_only_what_changes() -> None:
    request = growth.extend_growth("gro-1", half_width=0.05).request
    assert request == pb.ExtendGrowthRequest(
        growth="gro-1", precision=pb.Precision(half_width=0.05)
    )
    request = growth.extend_growth(running(), rollouts=9, rollouts_per_node=0).request
    assert request == pb.ExtendGrowthRequest(
        growth="gro-1", budget=pb.Budget(rollouts=9), rollouts_per_node=0
    )


@pytest.mark.parametrize(
    ("options", "field"),
    [({}, "rollouts"), ({"half_width": 0.0}, "half_width"), ({"statistic": "mode"}, "statistic")],
)
def test_extensions_that_are_none(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        growth.extend_growth("gro-1", **options)


def test_a_list_is_limited_by_state_policy_and_question() -> None:
    request = growth.list_growths(states="paused", policy="p", question="q").request
    assert request == pb.ListGrowthsRequest(
        states=[pb.GROWTH_STATE_PAUSED], policy="p", question="q"
    )
    with pytest.raises(ValueError, match=r"^states: 'lost' is none of queued"):
        growth.list_growths(states=["running", "lost"])


async def test_handles_pause_and_resume(server: ScriptedServer) -> None:
    server.answer("GetGrowth", pb.GetGrowthResponse(growth=running()))
    paused = running(state=pb.GROWTH_STATE_PAUSED)
    server.answer("PauseGrowth", pb.PauseGrowthResponse(growth=paused))
    server.answer("ResumeGrowth", pb.ResumeGrowthResponse(growth=running()))
    with unmask.Client(server.address) as client:
        handle = unmask.GrowthHandle(client, client.get_growth("gro-1"))
        assert handle.pause() == paused == handle.growth
        assert not handle.ended
        assert handle.resume() == running()
    async with unmask.AsyncClient(server.address) as client:
        waiting = unmask.AsyncGrowthHandle(client, running())
        assert await waiting.pause() == paused
        assert await waiting.resume() == running() == waiting.growth


def test_the_list_shows_states_budgets_and_who_waits_for_whom(server: ScriptedServer) -> None:
    waiting = running(id="gro-2", waits_for="gro-1")
    server.answer("ListGrowths", pb.ListGrowthsResponse(growths=[waiting, running()]))
    done = run(server, "growth", "list", "--state", "running", "-s", "paused", "--policy", "p")
    assert done.exit_code == 0, done.output
    (request,) = server.requests("ListGrowths")
    assert list(request.states) == [pb.GROWTH_STATE_RUNNING, pb.GROWTH_STATE_PAUSED]
    assert request.policy == "p"
    first, second = (line for line in done.stdout.splitlines() if "gro-" in line)
    assert "running, after gro-1" in first
    assert "1,000, 5,000 tokens" in second
    assert "2 growths" in done.stderr


@pytest.mark.parametrize("verb", ["Pause", "Resume", "Cancel"])
def test_a_growth_is_told_what_to_do(server: ScriptedServer, verb: str) -> None:
    answer = getattr(pb, f"{verb}GrowthResponse")(growth=running())
    server.answer(f"{verb}Growth", answer)
    done = run(server, "growth", verb.lower(), "gro-1")
    assert done.exit_code == 0, done.output
    (request,) = server.requests(f"{verb}Growth")
    assert request.growth == "gro-1"
    assert "100 sampled of 1,000" in done.stdout


def test_the_same_to_a_smaller_half_width(server: ScriptedServer) -> None:
    grown = running(precision=pb.Precision(half_width=0.05), half_width=0.12)
    server.answer("ExtendGrowth", pb.ExtendGrowthResponse(growth=grown))
    done = run(server, "growth", "extend", "gro-1", "--half-width", "0.05")
    assert done.exit_code == 0, done.output
    (request,) = server.requests("ExtendGrowth")
    assert request.precision == pb.Precision(half_width=0.05)
    assert "±0.05 wanted, ±0.12 now" in done.stdout


def test_a_growth_is_shown_and_watched_to_its_end(server: ScriptedServer) -> None:
    server.answer("GetGrowth", pb.GetGrowthResponse(growth=running()))
    ended = running(state=pb.GROWTH_STATE_SUCCEEDED, rollouts_sampled=1000)
    server.answer("WatchGrowth", [pb.WatchGrowthResponse(growth=ended)])
    assert "running" in run(server, "growth", "show", "gro-1").stdout
    done = run(server, "growth", "watch", "gro-1")
    assert done.exit_code == 0, done.output
    assert "succeeded" in done.stdout

"""How sure, at what price, and which teacher: as the commands show it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner
from unmask.cli.comparisons import comparison_table, summary_view
from unmask.cli.forecasts import next_halving
from unmask.cli.growth import precision_rows
from unmask.cli.main import app
from unmask.cli.numbers import probability
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2

from tests.client.making import around, summary
from tests.client.scripted import ScriptedServer

NAMES = {"tea-1": "strong", "tea-2": "self+wrong_solution", "tea-3": "self+answer"}
GAINS = {"tea-1": 0.2, "tea-2": -0.1, "tea-3": 0.5}
TWO = (diagnosis_pb2.LOSS_REVERSE_KL, diagnosis_pb2.LOSS_FORWARD_KL)
FORECAST = growth_pb2.Forecast(rollouts=around(1234), tokens=around(56789), seconds=around(90))


def printed(what: RenderableType, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(what)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def run(server: ScriptedServer, *arguments: str) -> Any:
    asked = [*arguments, "--server", server.address]
    return CliRunner().invoke(app, asked, env={"COLUMNS": "80"})


def test_predict_says_what_it_costs_and_what_is_settled(server: ScriptedServer) -> None:
    server.answer(
        "PredictGrowth",
        growth_pb2.PredictGrowthResponse(
            forecast=FORECAST, nodes=80, nodes_settled=65, rollouts_cached=4321, may_be_more=True
        ),
    )
    done = run(server, "predict", "trj-1", "--half-width", "0.2", "-t", "big", "--algorithm", "opd")
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "every token's cosine to ±0.2" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["rollouts", "1,200", "620…2,500"] in rows
    assert ["tokens", "57,000", "28,000…110,000"] in rows
    assert ["time", "1:30", "45", "s…3:00"] in rows
    assert "settled  65 of 80 tokens" in done.stdout
    assert "4,321 rollouts already count" in done.stdout
    assert "It may cost more" in done.stdout
    (request,) = server.requests("PredictGrowth")
    assert request.precision.half_width == 0.2
    assert list(request.teachers) == ["big"]
    assert request.algorithms[0].form == diagnosis_pb2.FORM_SAMPLED
    assert server.requests("StartGrowth") == []


def test_predict_says_when_nothing_is_needed_and_when_the_time_is_not_known(
    server: ScriptedServer,
) -> None:
    settled = growth_pb2.PredictGrowthResponse(forecast={}, nodes=8, nodes_settled=8)  # type: ignore[arg-type]
    server.answer("PredictGrowth", settled)
    done = run(server, "predict", "trj-1", "--half-width", "0.2", "--statistic", "ranking",
               "-t", "a", "-t", "b", "--confidence", "0.9")  # fmt: skip
    assert "the best teacher: 90%, or its lead known to ±0.2" in done.stdout
    assert "Nothing more is needed." in done.stdout
    assert "No time yet" not in done.stdout
    timeless = growth_pb2.Forecast(rollouts=around(9), tokens=around(90))
    server.answer("PredictGrowth", growth_pb2.PredictGrowthResponse(forecast=timeless, nodes=8))
    done = run(server, "predict", "trj-1", "-p", "3", "--half-width", "0.2")
    assert "every token's ideal gradient to ±0.2" in done.stdout
    assert "No time yet" in done.stdout
    assert "time  " not in done.stdout


def test_grow_ends_with_how_sure_it_is_and_the_price_of_twice_that(server: ScriptedServer) -> None:
    ended = growth_pb2.Growth(
        id="gro-1", state=growth_pb2.GROWTH_STATE_SUCCEEDED, nodes=80, nodes_flat=50,
        nodes_settled=65, half_width=0.31, next_halving=FORECAST,
    )  # fmt: skip
    server.answer("StartGrowth", growth_pb2.StartGrowthResponse(growth=ended))
    server.answer("WatchGrowth", [growth_pb2.WatchGrowthResponse(growth=ended)])
    done = run(server, "grow", "trj-1", "--rollouts", "9", "--half-width", "0.3",
               "--allocation", "adaptive", "--algorithm", "forward_kl", "-t", "big")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "80 distinct, 50 flat beforehand; 65 settled" in said
    assert "±0.31" in said
    assert "±0.15 would take about 1,200 more rollouts (620…2,500), 57,000 tokens" in said
    (request,) = server.requests("StartGrowth")
    assert request.precision.half_width == 0.3


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert precision_rows(growth_pb2.Growth(nodes=8), "cosine") == []
    assert next_halving(growth_pb2.Growth(half_width=0.2)) == ""
    (row,) = precision_rows(growth_pb2.Growth(half_width=1.4), "cosine")
    assert "±1 or more" in row[1]


def test_the_better_teacher_of_each_pair_comes_first() -> None:
    rows = printed(comparison_table(summary(GAINS, best="tea-3", losses=TWO[:1]), NAMES))
    assert [line.split("  ")[0] for line in rows[2:]] == [
        "self+answer - self+wrong_solution",
        "strong - self+wrong_solution",
        "self+answer - strong",
    ]
    assert rows[2].split()[-3:] == ["+0.600", "+.500…+.700", "0.99"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "<0.01"), (0.006, "0.01"), (0.5, "0.50"), (0.9999, ">0.99")]
)
def test_nothing_is_certain(value: float, shown: str) -> None:
    assert probability(value) == shown


def test_many_pairs_are_cut_down_to_those_of_the_best_teacher() -> None:
    gains = {f"tea-{i}": i / 100 for i in range(1, 7)}
    rows = printed(comparison_table(summary(gains, best="tea-6", losses=TWO), {}))
    assert len([line for line in rows if line.startswith("tea-6 - ")]) == 2 * 5
    assert len([line for line in rows if " - " in line]) == 2 * 5
    assert "forward_kl" in rows


@pytest.mark.parametrize("losses", [TWO[:1], TWO])
def test_a_summary_fits_and_explains_itself(losses: Any) -> None:
    rows = printed(summary_view(summary(GAINS, best="tea-3", losses=losses), NAMES))
    assert max(map(len, rows)) <= 80
    shown = "\n".join(rows)
    assert "P(best) 0.97" in shown
    (kept,) = {line for line in rows if line.startswith("strong") and "71%" in line}
    assert kept.split()[1:4] == ["71%", "+0.60", "+.50…+.70"]
    assert kept.split()[4:] == ["+0.300", "+.200…+.400", "+0.200"]
    for term in (
        "flat",
        "cosine",
        "gain per unit step",
        "advantage",
        "P(best)",
        "P(better)",
        "kept",
    ):
        assert any(line.startswith(term + "  ") for line in rows), term


def test_one_teacher_is_compared_with_nobody() -> None:
    alone = summary({"tea-1": 0.2}, best="", losses=TWO[:1])
    alone.summaries[0].ClearField("probability_best")
    shown = "\n".join(printed(summary_view(alone, NAMES)))
    assert "P(best)" not in shown
    assert "Which teacher" not in shown


def test_the_summary_command_shows_comparisons(server: ScriptedServer) -> None:
    ids = {name: teacher for teacher, name in NAMES.items()}
    server.answer(
        "GetTeacher",
        lambda request, context: catalog_pb2.GetTeacherResponse(
            teacher=catalog_pb2.Teacher(id=ids[request.teacher])
        ),
    )
    server.answer("SummarizeAlignments", summary(GAINS, best="tea-3", losses=TWO[:1]))
    done = run(server, "summary", "trj-1", "-t", "strong", "-t", "self+wrong_solution",
               "-t", "self+answer")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "self+answer - strong" in done.stdout

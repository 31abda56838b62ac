"""What adaptive growth costs on the shipped models, and whether that was known before.

For each of some questions: a prediction, then the growth it was about, over the nodes of two
generations. `forecast_rollouts` and `forecast_tokens`: the share of predictions within a factor of
1.5 of what it took, for those made from nothing and for those of a finer precision made once there
is something (`..._finer`). `planning_share`: seconds of a thread's time spent on planning over the
seconds of the growths.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import unmask

from bench.figures import show

ROOT = Path(__file__).parents[1]
TEACHERS = ("strong", "told")
FIRST, FINER = 0.3, 0.2
"""Half widths of the cosines' intervals."""
CHOSEN_ON = 10
"""The first questions are those that forecasts were corrected on."""
WITHIN = 1.5
WANTED = 0.8


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=10)
    count = parser.parse_args().questions
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "unmask.db"
        with unmask.local(database) as client:
            found = grow(client, count)
        log = Path(f"{database}.log").read_text()
    for finer in (False, True):
        for kind in ("rollouts", "tokens"):
            ratios = [row[kind] for row in found if row["finer"] == finer]
            report(f"forecast_{kind}{'_finer' if finer else ''}", ratios)
    planning = sum(map(float, re.findall(r"planning=([\d.]+)", log)))
    took = sum(map(float, re.findall(r" seconds=([\d.]+)", log)))
    idle = sum(map(float, re.findall(r"idle=([\d.]+)", log)))
    show(share("planning_share", planning / took, 0.02, "down", len(found)))
    show(share("idle_share", idle / took, 0.02, "down", len(found)))


def grow(client: unmask.Client, count: int) -> list[dict[str, Any]]:
    """Ratios of what was predicted to what it took."""
    models = ROOT / "examples" / "models"
    client.register_policy(models / "student", name="student", temperature=0.7, max_new_tokens=80)
    client.register_teacher(models / "teacher-strong", name="strong", policies=["student"])
    client.register_teacher("student", name="told", context="answer")
    registered = client.register_questions(
        ROOT / "examples" / "word_problems" / "questions.jsonl", verifier="hash_answer"
    )
    questions = [row.question.id for row in registered][CHOSEN_ON : CHOSEN_ON + count]
    rows = []
    for question in questions:
        found = client.sample_trajectories("student", [question], count=2).trajectories
        targets = [trajectory.id for trajectory in found]
        for half_width in (FIRST, FINER):
            asked = {"half_width": half_width, "teachers": TEACHERS}
            ahead = client.predict_growth(targets, **asked).forecast
            growth = client.grow(targets, rollouts=200_000, **asked).wait()
            if growth.rollouts_sampled:
                rows.append(
                    {
                        "finer": half_width == FINER,
                        "rollouts": ahead.rollouts.median / growth.rollouts_sampled,
                        "tokens": ahead.tokens.median / growth.tokens_sampled,
                    }
                )
    return rows


def report(name: str, ratios: list[float]) -> None:
    """How many of the predictions were right."""
    right = sum(1 / WITHIN <= ratio <= WITHIN for ratio in ratios) / len(ratios)
    ordered = sorted(ratios)
    row = share(name, right, WANTED, "up", len(ratios))
    show({**row, "quartiles": [round(ordered[len(ratios) * k // 4], 2) for k in (1, 2, 3)]})


def share(name: str, value: float, goal: float, direction: str, n: int) -> dict[str, Any]:
    """A share as a figure: its baseline is one."""
    spread = 1.645 * (value * (1.0 - value) / n) ** 0.5
    return {
        "name": name, "value": round(value, 4), "unit": "share", "baseline": 1.0,
        "ratio": round(value, 4), "goal": goal, "direction": direction, "n": n,
        "low": round(value - spread, 4), "high": round(value + spread, 4),
    }  # fmt: skip


if __name__ == "__main__":
    main()

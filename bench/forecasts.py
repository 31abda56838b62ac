"""What adaptive growth costs on the shipped models, and whether that was known before.

For each of some questions: a prediction, then the growth it was about, over the nodes of two
generations; then the same for half the half width. The first in a second copy of the database as
well, so that the same growth is seen twice, with other seeds.

`forecast_rollouts`, `forecast_tokens`: the share of predictions within a factor of 1.5 of what it
took, for those made from nothing and for those of half the half width (`..._finer`), where nothing
predicted and nothing taken is right; `forecast_per_rollout`: tokens over rollouts, likewise, where
there were any. `bias` and `spread` are mean and standard deviation of the logarithms of predicted
over taken; every case is told on standard error. Beside them `repeat_rollouts`, `repeat_tokens`:
the share of growths that took what the other one of the same took, within the same factor, and
`typical_...`: within that factor of what such growths typically take, by the spread between the
two; no forecast made before the first rollout can be expected to do better. `planning_share`:
seconds of a thread's time spent on planning over the seconds of the growths;
`planning_processor_share`: over the processor time of the server, start included, which other load
does not change.

With `--at-once 4`, growths over two generations of each of four questions together, as who plans a
run over many questions asks for: `forecast_..._at_once`. Each set is grown `GROUPS` times, over
other generations in another copy of the database; nothing is seen twice.
"""

from __future__ import annotations

import argparse
import re
import resource
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import unmask
from numpy.typing import NDArray

from bench.figures import show

FloatArray = NDArray[np.float64]
ROOT = Path(__file__).parents[1]
TEACHERS = ("strong", "told")
FIRST, FINER = 0.3, 0.15
"""Half widths of the cosines' intervals."""
CHOSEN_ON = 20
"""The first questions are those that forecasts were corrected on."""
COPIES = 2
GROUPS = 4
WITHIN = 1.5
WANTED = 0.8
Z90 = 1.645


@dataclass(frozen=True)
class Grown:
    """A growth, and what was predicted of it."""

    question: int
    half_width: float
    predicted: tuple[float, float]
    """Rollouts and tokens."""
    took: tuple[float, float]


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--skip", type=int, default=CHOSEN_ON)
    parser.add_argument("--at-once", type=int, default=1, help="questions in one growth")
    args = parser.parse_args()
    if args.at_once > 1:
        sets_at_once(args.skip, args.questions, args.at_once)
        return
    found: list[list[Grown]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "unmask.db"
        targets = prepare(base, args.skip, args.questions, 2)
        logs, processor = "", 0.0
        for k in range(COPIES):
            copy = copied(base, k)
            before = _processor()
            found.append(grow(copy, targets, (FIRST, FINER) if k == 0 else (FIRST,)))
            processor += _processor() - before
            logs += Path(f"{copy}.log").read_text()
    for half_width in (FIRST, FINER):
        mine = [[row for row in rows if row.half_width == half_width] for rows in found]
        report([row for rows in mine for row in rows], "" if half_width == FIRST else "_finer")
    repeats([[row for row in rows if row.half_width == FIRST] for rows in found])
    planning, took, idle = (
        np.array(re.findall(rf" {name}=([\d.]+)", logs), dtype=np.float64)
        for name in ("planning", "seconds", "idle")
    )
    show(over("planning_share", planning, took))
    show(over("planning_processor_share", planning, processor * took / took.sum()))
    show(over("idle_share", idle, took))


def sets_at_once(skip: int, count: int, size: int) -> None:
    """Print the figures of growths over several questions together."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "unmask.db"
        generations = prepare(base, skip, count, 2 * GROUPS)
        for k in range(GROUPS):
            mine = [one[2 * k : 2 * k + 2] for one in generations]
            sets = [
                [generation for one in mine[i : i + size] for generation in one]
                for i in range(0, count - size + 1, size)
            ]
            grown = grow(copied(base, k), sets, (FIRST,))
            rows += [replace(row, question=row.question + k * len(sets)) for row in grown]
    report(rows, "_at_once")


def copied(base: Path, k: int) -> Path:
    """Another copy of a database."""
    copy = base.with_name(f"copy{k}.db")
    with closing(sqlite3.connect(base)) as source, closing(sqlite3.connect(copy)) as other:
        source.backup(other)
    return copy


def prepare(database: Path, skip: int, count: int, each: int) -> list[list[str]]:
    """Register everything. Returns so many generations of each question, to grow."""
    with unmask.local(database) as client:
        models = ROOT / "examples" / "models"
        client.register_policy(
            models / "student", name="student", temperature=0.7, max_new_tokens=80
        )
        client.register_teacher(models / "teacher-strong", name="strong", policies=["student"])
        client.register_teacher(base="student", name="told", context="answer")
        registered = client.register_questions(
            ROOT / "examples" / "word_problems" / "questions.jsonl", verifier="hash_answer"
        )
        questions = [row.question.id for row in registered][skip : skip + count]
        sampled = [client.sample_trajectories("student", [q], count=each) for q in questions]
    return [[trajectory.id for trajectory in one.trajectories] for one in sampled]


def grow(
    database: Path, targets: Sequence[Sequence[str]], half_widths: Sequence[float]
) -> list[Grown]:
    """Predict and grow, question after question; each is told on standard error."""
    rows = []
    with unmask.local(database) as client:
        for question, mine in enumerate(targets):
            for half_width in half_widths:
                asked = {"half_width": half_width, "teachers": TEACHERS}
                ahead = client.predict_growth(mine, **asked).forecast
                growth = client.grow(mine, rollouts=200_000, **asked).wait()
                predicted = ahead.rollouts.median, ahead.tokens.median
                took = float(growth.rollouts_sampled), float(growth.tokens_sampled)
                rows.append(Grown(question, half_width, predicted, took))
                print(told(rows[-1]), file=sys.stderr, flush=True)
    return rows


def told(row: Grown) -> str:
    """A case in one line: what was predicted, what it took, and the logarithm of their ratio."""
    parts = [f"question {row.question:2d}  half width {row.half_width}"]
    for kind, (predicted, took) in costs(row).items():
        off = f"{np.log(predicted / took):+.2f}" if predicted and took else "    -"
        parts.append(f"{kind} {predicted:.4g} / {took:.4g} {off}")
    return "  ".join(parts)


def costs(row: Grown) -> dict[str, tuple[float, float]]:
    """Predicted and taken, by what is counted; 0 tokens a rollout where there was none."""
    (rollouts, tokens), (in_fact, tokens_in_fact) = row.predicted, row.took
    each = tokens / rollouts if rollouts else 0.0, tokens_in_fact / in_fact if in_fact else 0.0
    return {
        "rollouts": (rollouts, in_fact), "tokens": (tokens, tokens_in_fact), "per_rollout": each,
    }  # fmt: skip


def report(rows: Sequence[Grown], suffix: str) -> None:
    """How many of the predictions were right."""
    for kind in ("rollouts", "tokens", "per_rollout"):
        pairs = [costs(row)[kind] for row in rows]
        both = [pair for pair in pairs if all(pair)]
        if kind == "per_rollout":
            pairs = both
        logs = np.log([a / b for a, b in both])
        right = float(np.mean([near(*pair) for pair in pairs]))
        quartiles = np.exp(np.quantile(logs, (0.25, 0.5, 0.75))).round(2).tolist() if both else []
        questions = len({row.question for row in rows})
        row = share(f"forecast_{kind}{suffix}", right, questions)
        twice = float(np.mean([near(*pair, factor=2.0) for pair in pairs]))
        show(
            {
                **row,
                "n": len(pairs),
                "within_twice": round(twice, 3),
                "quartiles": quartiles,
                "bias": round(float(logs.mean()), 3) if both else None,
                "spread": round(float(logs.std()), 3) if both else None,
                "of_nothing": sum(not b for _, b in pairs),
            }
        )


def repeats(copies: Sequence[Sequence[Grown]]) -> None:
    """How well one growth tells another one of the same."""
    for k, kind in enumerate(("rollouts", "tokens")):
        pairs = [(a.took[k], b.took[k]) for a, b in zip(copies[0], copies[1], strict=True)]
        same = float(np.mean([near(*pair) for pair in pairs]))
        show(share(f"repeat_{kind}", same, len(pairs)))
        logs = [np.log(a / b) for a, b in pairs if a and b]
        # The spread of one about its mean, from the difference of two; of logarithms.
        spread = float(np.sqrt(np.mean(np.square(logs)) / 2.0))
        typical = 2.0 * NormalDist().cdf(np.log(WITHIN) / max(spread, 1e-9)) - 1.0
        row = share(f"typical_{kind}", typical, len(logs))
        show({**row, "spread": round(spread, 3)})


def over(name: str, part: FloatArray, whole: FloatArray) -> dict[str, Any]:
    """A share of the time of growths as a figure, with 90% of what resampled growths say."""
    drawn = np.random.default_rng(0).integers(len(part), size=(1000, len(part)))
    low, high = np.quantile(part[drawn].sum(axis=1) / whole[drawn].sum(axis=1), (0.05, 0.95))
    value = float(part.sum() / whole.sum())
    return {
        "name": name, "value": round(value, 4), "unit": "share", "baseline": 1.0,
        "ratio": round(value, 4), "goal": 0.02, "direction": "down", "n": len(part),
        "low": round(float(low), 4), "high": round(float(high), 4),
    }  # fmt: skip


def near(a: float, b: float, factor: float = WITHIN) -> bool:
    """Whether two costs are within a factor."""
    return a == b or (min(a, b) > 0.0 and max(a, b) <= factor * min(a, b))


def share(name: str, value: float, n: int) -> dict[str, Any]:
    """A share of n questions as a figure, with Wilson's interval at 90%: its baseline is one."""
    scale = 1.0 + Z90**2 / n
    centre = (value + Z90**2 / (2 * n)) / scale
    spread = Z90 / scale * (value * (1.0 - value) / n + Z90**2 / (4 * n * n)) ** 0.5
    return {
        "name": name, "value": round(value, 4), "unit": "share", "baseline": 1.0,
        "ratio": round(value, 4), "goal": WANTED, "direction": "up", "n": n,
        "low": round(centre - spread, 4), "high": round(centre + spread, 4),
    }  # fmt: skip


def _processor() -> float:
    """Processor time of the servers that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()

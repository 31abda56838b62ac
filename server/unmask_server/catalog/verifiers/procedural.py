"""reasoning-gym's generators and scorers, in a worker process.

An entry is named by where it comes from, as JSON: `{"dataset", "size", "seed", "index", "config",
"version"}`. It is made anew when it is needed, because its metadata may hold what JSON cannot.
"""

from __future__ import annotations

import copy
import json
import math
import random
from functools import lru_cache
from typing import Any

_EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")
"""Where the metadata of an entry without an answer may hold one."""


def load() -> None:
    """Load the library, and what its scorers load when they are first called."""
    import reasoning_gym  # noqa: F401
    from sympy.parsing.sympy_parser import parse_expr

    parse_expr("1 + 1")


def names() -> list[str]:
    """The data sets that there are."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def prompts() -> dict[str, str]:
    """The library's own instructions on how to answer, by name."""
    from reasoning_gym.utils import SYSTEM_PROMPTS

    return dict(SYSTEM_PROMPTS)


def entry(origin: str) -> dict[str, str | None]:
    """An entry's `question`, `answer` (None where the set has none) and `difficulty`, as texts.

    Where many answers are right, the answer is the example that the entry may hold.
    """
    _, made = _entry(origin)
    metadata = made.get("metadata") or {}
    answer = made.get("answer")
    for key in _EXAMPLES:
        answer = metadata.get(key) if answer is None else answer
    difficulty = metadata.get("difficulty")
    if answer is not None and not isinstance(answer, str):
        answer = json.dumps(answer) if isinstance(answer, dict | list) else str(answer)
    return {
        "question": str(made["question"]),
        "answer": answer,
        "difficulty": None if not difficulty else json.dumps(difficulty, default=str),
    }


def score(text: str, origin: str, whole: bool) -> float:
    """A generation's score in [0, 1]; of all of it, or of what its last `<answer>` tags hold.

    A generation without tags is scored as the library scores no answer.
    """
    from reasoning_gym.utils import extract_answer

    dataset, made = _entry(origin)
    answer = text.strip() if whole else extract_answer(text)
    # Some scorers write into the entry, and some draw random numbers.
    random.seed(0)
    found = float(dataset.score_answer(answer, copy.deepcopy(made)))
    return min(max(found, 0.0), 1.0) if math.isfinite(found) else 0.0


@lru_cache(maxsize=1024)
def _entry(origin: str) -> tuple[Any, dict[str, Any]]:
    given = json.loads(origin)
    config = json.dumps(given["config"], sort_keys=True)
    dataset = _dataset(given["dataset"], given["size"], given["seed"], config)
    return dataset, dataset[given["index"]]


@lru_cache(maxsize=16)
def _dataset(name: str, size: int, seed: int, config: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, **json.loads(config), size=size, seed=seed)

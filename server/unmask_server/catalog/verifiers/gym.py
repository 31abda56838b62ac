"""Questions of the reasoning-gym library, and its scorers."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import QuestionSpec, VerifierKind
from unmask_server.catalog.verifiers.pool import Failed, WorkerPool
from unmask_server.reasons import Reason

ORIGIN = "reasoning_gym"
"""The field of a question that names its entry; see `procedural`."""

_MODULE = "procedural"
_MISSING = (
    "reasoning-gym is not installed on the server; install it there: "
    "pip install 'unmask[reasoning-gym]'"
)


def installed_version() -> str:
    """The library's version, e.g. 0.1.25. Raises FailedPrecondition if it is not installed."""
    try:
        return metadata.version("reasoning-gym")
    except metadata.PackageNotFoundError:
        raise FailedPrecondition(Reason.LIBRARY_MISSING, _MISSING, extra="reasoning-gym") from None


def version_number() -> int:
    """The same as a number, for verifiers: 0.1.25 is 1025. Raises as `installed_version`."""
    parts = re.findall(r"\d+", installed_version())
    major, minor, patch = map(int, (*parts, "0", "0", "0")[:3])
    return major * 1_000_000 + minor * 1000 + patch


class ReasoningGym:
    """Makes entries and scores generations, in the workers of a pool. Callable from threads."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def questions(
        self, dataset: str, *, size: int, seed: int, config: Mapping[str, Any], prompt: str
    ) -> list[QuestionSpec]:
        """All entries of a set as questions.

        Args:
            dataset: its name.
            size: how many.
            seed: of the generator; the same arguments give the same questions.
            config: the set's other settings.
            prompt: which of the library's instructions stands before each question; `none`: none.

        Raises:
            InvalidArgument: no such set or prompt, or settings that the set refuses.
            FailedPrecondition: the library is not installed.

        """
        version = installed_version()
        known = self._ask("reasoning_gym.dataset", "names")
        if dataset not in known:
            near = difflib.get_close_matches(dataset, known, 3) or known[:3]
            raise InvalidArgument(
                "reasoning_gym.dataset", f"there is no {dataset!r}; is it {' or '.join(near)}?"
            )
        for name in ("size", "seed"):
            if name in config:
                raise InvalidArgument("reasoning_gym.config", f"{name} is a field of its own")
        instruction = self._instruction(prompt)
        found = []
        for index in range(size):
            origin = json.dumps(
                {
                    "dataset": dataset,
                    "size": size,
                    "seed": seed,
                    "index": index,
                    "config": dict(config),
                    "version": version,
                },
                sort_keys=True,
            )
            made = self._ask("reasoning_gym.config", "entry", origin)
            fields = {
                "question": instruction + made["question"],
                "problem": made["question"] if instruction else None,
                "answer": made["answer"],
                "difficulty": made["difficulty"],
                "task": dataset,
                ORIGIN: origin,
            }
            kept = {key: value for key, value in fields.items() if value is not None}
            found.append(QuestionSpec(None, kept, suited=VerifierKind.REASONING_GYM.value))
        return found

    def problem(self, origin: str) -> str | None:
        """Why nothing can be scored by an entry; None if it can. Raises FailedPrecondition."""
        if not origin:
            return f"it has no field {ORIGIN!r}: it was not made by reasoning-gym"
        try:
            given = json.loads(origin)
            version = given["version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return f"{ORIGIN}: {origin[:200]!r} names no entry"
        if version != installed_version():
            return (
                f"it was made by reasoning-gym {version}, and the server has "
                f"{installed_version()}, which may make another: register it anew"
            )
        answer = self._pool.ask(_MODULE, "entry", origin)
        return f"{ORIGIN}: {answer.reason}" if isinstance(answer, Failed) else None

    def check_version(self, version: int) -> None:
        """Refuse to score by a verifier of another version. Raises FailedPrecondition."""
        if version != version_number():
            raise FailedPrecondition(
                Reason.VERIFIER_OUTDATED,
                f"this question's verifier is reasoning-gym's of version {version}, and the server "
                f"has {version_number()}: register the question anew",
            )

    def score(self, text: str, origin: str, *, whole: bool) -> float:
        """A generation's score in [0, 1]; 0 if the scorer failed or took too long."""
        answer = self._pool.ask(_MODULE, "score", text, origin, whole)
        return 0.0 if isinstance(answer, Failed) else float(answer.value)

    def _instruction(self, prompt: str) -> str:
        if prompt == "none":
            return ""
        known = self._ask("reasoning_gym.prompt", "prompts")
        if prompt not in known:
            raise InvalidArgument(
                "reasoning_gym.prompt", f"{prompt!r} is none of none, {', '.join(sorted(known))}"
            )
        return f"{known[prompt].strip()}\n\n"

    def _ask(self, field: str, call: str, *args: Any) -> Any:
        answer = self._pool.ask(_MODULE, call, *args)
        if isinstance(answer, Failed):
            raise InvalidArgument(field, answer.reason)
        return answer.value

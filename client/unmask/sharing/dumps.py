"""What verl, slime and TRL write down of their rollouts, as generations.

Only what these trainers write is read here; whether it is the policy's is for the server to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unmask.sharing.files import read_rows
from unmask.v1 import sharing_pb2 as pb
from unmask.v1 import trajectory_pb2

Trainer = Literal["verl", "slime", "trl"]

Row = Mapping[str, Any]

STOP = trajectory_pb2.FINISH_REASON_STOP
LENGTH = trajectory_pb2.FINISH_REASON_LENGTH

_FINISHES = {
    "stop": STOP,
    "completed": STOP,
    "eos": STOP,
    "length": LENGTH,
    "truncated": LENGTH,
}
_UNFINISHED = ("pending", "aborted", "abort", "failed")


class SkippedError(ValueError):
    """A row that is no whole generation of one policy, and so none to take in."""


def read_dump(
    trainer: Trainer, path: Path, reward: str = ""
) -> Iterator[tuple[str, pb.TrainerGeneration | str]]:
    """(where it stands, generation or why it is left out) for every one in a file.

    Args:
        trainer: who wrote it.
        path: `.jsonl`, `.jsonl.gz`, `.json` or `.parquet`.
        reward: the column of the reward; empty: the trainer's usual one.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.

    """
    make = _MAKERS[trainer]
    for where, row in read_rows(path):
        rows = row["samples"] if isinstance(row.get("samples"), list) else [row]
        for i, one in enumerate(rows):
            place = f"{where}.samples[{i}]" if rows is row.get("samples") else where
            try:
                yield place, make(one, reward)
            except SkippedError as error:
                yield place, str(error)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{place}: no rollout of {trainer}: {error!r}") from None


def _verl(row: Row, reward: str) -> pb.TrainerGeneration:
    """A line of `trainer.rollout_data_dir`, or of an agent loop's outputs with token ids."""
    _check_mask(_get(row, "response_mask", "loss_mask"))
    return _generation(
        prompt=_get(row, "prompt_ids", "prompts", "input"),
        response=_get(row, "response_ids", "responses", "output"),
        logprobs=_get(row, "response_logprobs", "rollout_log_probs"),
        finish=_get(row, "finish_reason", "stop_reason"),
        reward=_number(row, reward or "score"),
    )


def _slime(row: Row, reward: str) -> pb.TrainerGeneration:
    """A Sample of slime, as its `to_dict` has it."""
    length = int(row["response_length"])
    tokens = row["tokens"]
    if not 0 < length <= len(tokens):
        raise SkippedError(f"{length} response tokens of {len(tokens)}")
    _check_mask(row.get("loss_mask"))
    if len(set(row.get("weight_versions") or ())) > 1:
        raise SkippedError("made by several versions of the weights")
    given = row.get("reward")
    if isinstance(given, Mapping):
        if not reward:
            raise ValueError("the reward has parts; name one of " + ", ".join(given))
        given = given[reward]
    return _generation(
        prompt=tokens[: len(tokens) - length],
        response=tokens[len(tokens) - length :],
        logprobs=row.get("rollout_log_probs"),
        finish=row.get("status"),
        reward=None if given is None else float(given),
    )


def _trl(row: Row, reward: str) -> pb.TrainerGeneration:
    """A row of `completions/completions_*.parquet`, or of a rollout function's output."""
    column = reward or next((name for name in ("reward", "rewards") if name in row), "reward")
    _check_mask(_get(row, "tool_mask", "completion_mask", "env_mask"))
    return _generation(
        prompt=_get(row, "prompt_ids", "prompt"),
        response=_get(row, "completion_ids", "completion"),
        logprobs=_get(row, "logprobs", "sampling_per_token_logps"),
        finish=_get(row, "finish_reason"),
        reward=_number(row, column),
    )


_MAKERS: dict[Trainer, Callable[[Row, str], pb.TrainerGeneration]] = {
    "verl": _verl,
    "slime": _slime,
    "trl": _trl,
}


def _generation(
    *, prompt: Any, response: Any, logprobs: Any, finish: Any, reward: float | None
) -> pb.TrainerGeneration:
    if finish in _UNFINISHED:
        raise SkippedError(f"it is {finish}")
    told = pb.TrainerGeneration(reward=reward)
    if finish is not None:
        told.finish_reason = _FINISHES[finish]
    if _are_ids(prompt):
        told.prompt_tokens.extend(prompt)
    elif prompt is not None:
        told.prompt_text = _text(prompt)
    if _are_ids(response):
        told.tokens.extend(response)
        # TRL's engines give a list of the likeliest at each token; the first is the token's own.
        told.logprobs.extend(one[0] if isinstance(one, list) else one for one in logprobs or ())
    elif response is None:
        raise KeyError("no response")
    else:
        told.text = _text(response)
    if not (told.tokens or told.text):
        raise SkippedError("it is empty")
    return told


def _get(row: Row, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _number(row: Row, column: str) -> float | None:
    given = row.get(column)
    if isinstance(given, list):
        if len(given) != 1:
            raise ValueError(f"{column} has {len(given)} numbers; name another column")
        given = given[0]
    return None if given is None else float(given)


def _check_mask(mask: Sequence[Any] | None) -> None:
    if mask is not None and not all(mask):
        raise SkippedError("not all of its tokens were sampled: it has a tool's or another's")


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _text(value: Any) -> str:
    """A text; of messages, the only one's."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0]["content"]
    if not isinstance(value, str):
        raise SkippedError("it has several messages, and token ids are not given")
    return value

"""A trainer's file, taken in as free rollouts of the policy that it was made by."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask.client import Client
from unmask.requests.refs import Ref
from unmask.sharing.dumps import Trainer, read_dump
from unmask.v1 import sharing_pb2 as pb

LOOKED_AT = 256
"""Generations, spread over the file, that the policy's model scores before any is kept, ..."""
TOKENS_LOOKED_AT = 30_000
"""... unless fewer have so many tokens: their number is what the check's precision comes from."""
SCORED = 4
"""Generations of each batch that it scores once more."""
BATCH = 500
BATCH_BYTES = 2 * 2**20


@dataclass
class TrainerImport:
    """What became of a file."""

    added: int = 0
    known: int = 0
    """Imported before."""
    skipped: Counter[str] = field(default_factory=Counter)
    """By why: what is no whole generation of one policy."""
    fit: pb.ImportGenerationsResponse | None = None
    """How well those that were scored first fit the policy; None for an empty file."""


def import_trainer(
    client: Client,
    trainer: Trainer,
    path: str | os.PathLike[str],
    *,
    policy: Ref,
    temperature: float,
    max_new_tokens: int,
    top_p: float = 1.0,
    top_k: int = 0,
    run: str = "",
    questions: Ref | Iterable[Ref] = (),
    verifier: Ref = "",
    reward: str = "",
    reward_range: tuple[float, float] = (0.0, 1.0),
    allow_text: bool = False,
    tolerance: float | None = None,
    validate_only: bool = False,
    on_progress: Callable[[TrainerImport], None] = lambda done: None,
) -> TrainerImport:
    """Check a file against a policy, then keep its generations. Again, nothing counts twice.

    Args:
        client: the server's.
        trainer: who wrote the file.
        path: `.jsonl`, `.jsonl.gz`, `.json` or `.parquet`.
        policy: who made the generations: the checkpoint at that step, not a later one.
        temperature: how the trainer sampled; must be the policy's, like the next three.
        max_new_tokens: its limit.
        top_p: its cut.
        top_k: its cut.
        run: names the file's generations; empty: a digest of its bytes.
        questions: prompts are looked for among these only.
        verifier: of kind `external`, to keep the rewards under; else they are not used.
        reward: the column, or part, of the reward; empty: the trainer's usual one.
        reward_range: what is to become 0, and what 1.
        allow_text: whether generations that are only texts are tokenised anew.
        tolerance: in nats, see `Client.import_generations`.
        validate_only: keep nothing.
        on_progress: called now and then.

    Raises:
        UnmaskError: the server refuses.
        OSError: the file cannot be read.
        ValueError: it is no such file.

    """
    path = Path(path)
    low, high = reward_range
    if not low < high:
        raise ValueError("reward_range: the second number must be larger than the first")
    options: dict[str, Any] = {
        "run": run or _digest(path),
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "top_p": top_p,
        "top_k": top_k,
        "questions": questions,
        "verifier": verifier,
        "allow_text": allow_text,
        "tolerance": tolerance,
    }
    result = TrainerImport()

    def generations() -> Iterator[pb.TrainerGeneration]:
        seen: Counter[bytes] = Counter()
        result.skipped.clear()
        for _, one in read_dump(trainer, path, reward):
            if isinstance(one, str):
                result.skipped[one] += 1
                continue
            name = _name(one)
            one.ordinal = seen[name]
            seen[name] += 1
            if not verifier:
                one.ClearField("reward")
            elif one.HasField("reward"):
                one.reward = (one.reward - low) / (high - low)
            yield one

    first = _spread(generations())
    if not first:
        return result
    # Before anything is kept: some of the whole file.
    result.fit = client.import_generations(
        policy, first, scored=len(first), validate_only=True, **options
    )
    if validate_only:
        return result
    for batch in _batches(generations()):
        done = client.import_generations(policy, batch, scored=min(SCORED, len(batch)), **options)
        result.added += done.added
        result.known += done.known
        on_progress(result)
    return result


def _spread(given: Iterable[pb.TrainerGeneration]) -> list[pb.TrainerGeneration]:
    """A sample, in which each is as likely as any other; the same for the same file."""
    draw = random.Random(0)
    kept: list[pb.TrainerGeneration] = []
    for i, one in enumerate(given):
        if i < LOOKED_AT:
            kept.append(one)
        elif (place := draw.randrange(i + 1)) < LOOKED_AT:
            kept[place] = one
    draw.shuffle(kept)
    tokens = 0
    for i, one in enumerate(kept):
        if tokens >= TOKENS_LOOKED_AT:
            return kept[:i]
        # A token of text has some four characters.
        tokens += len(one.tokens) or len(one.text) // 4
    return kept


def _batches(given: Iterable[pb.TrainerGeneration]) -> Iterator[list[pb.TrainerGeneration]]:
    batch: list[pb.TrainerGeneration] = []
    size = 0
    for one in given:
        if batch and (len(batch) == BATCH or size + one.ByteSize() > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.ByteSize()
    if batch:
        yield batch


def _name(one: pb.TrainerGeneration) -> bytes:
    """What a generation is, but for which of its kind: its prompt and its tokens."""
    told = pb.TrainerGeneration(
        question=one.question,
        prompt_tokens=one.prompt_tokens,
        prompt_text=one.prompt_text,
        tokens=one.tokens,
        text=one.text,
    )
    return hashlib.blake2b(told.SerializeToString(deterministic=True), digest_size=16).digest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

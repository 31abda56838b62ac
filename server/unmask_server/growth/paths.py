"""Whether tokens from elsewhere can be a generation of a policy."""

from __future__ import annotations

from collections.abc import Sequence

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Policy
from unmask_server.growth.outcomes import LENGTH, STOP


def check_path(policy: Policy, tokens: Sequence[int], forced: int, finish: int, field: str) -> None:
    """Refuse what the policy cannot have generated, whatever its model says.

    Args:
        policy: whose generation it is said to be.
        tokens: all of them.
        forced: how many of the first were imposed.
        finish: `STOP` or `LENGTH`.
        field: of the request, for errors.

    Raises:
        InvalidArgument: an id outside of the vocabulary; tokens after an end token; an end that is
            none: STOP means that the last token is an end token, LENGTH that the limit is reached.

    """
    vocab = policy.model.vocab_size
    for i, token in enumerate(tokens):
        if not 0 <= token < vocab:
            raise InvalidArgument(
                f"{field}.tokens[{i}]", f"token id {token} is not in 0 to {vocab - 1}"
            )
    if not tokens:
        raise InvalidArgument(f"{field}.tokens", "the generation is empty")
    if not 0 <= forced <= len(tokens):
        raise InvalidArgument(f"{field}.forced", f"{forced} is not in 0 to {len(tokens)}")
    for i, token in enumerate(tokens[:-1]):
        if token in policy.stop_ids:
            raise InvalidArgument(
                f"{field}.tokens[{i}]", f"token {token} ends a generation, but more tokens follow"
            )
    if len(tokens) > policy.max_new_tokens:
        raise InvalidArgument(
            f"{field}.tokens",
            f"{len(tokens)} tokens, but the policy's generations are cut off after "
            f"{policy.max_new_tokens}",
        )
    if finish == STOP and tokens[-1] not in policy.stop_ids:
        raise InvalidArgument(
            f"{field}.finish_reason", "STOP, but the last token is no end token of the policy"
        )
    if finish == LENGTH and (len(tokens) < policy.max_new_tokens or tokens[-1] in policy.stop_ids):
        raise InvalidArgument(
            f"{field}.finish_reason",
            f"LENGTH, but it has {len(tokens)} tokens of {policy.max_new_tokens}, or an end token",
        )
    if finish not in (STOP, LENGTH):
        raise InvalidArgument(f"{field}.finish_reason", "is neither STOP nor LENGTH")

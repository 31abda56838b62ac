"""128-bit names of prefixes, chained one token a step.

``h_0`` names the policy and the question, ``h_t = BLAKE2b-128(h_{t-1} || token as uint32)``. So the
names of all prefixes of a trajectory cost one hash a token, and equal prefixes have equal names in
every database. Chains of this kind key the prefix caches of inference engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from unmask_server.tree.tokens import TOKEN_BYTES, pack

FINGERPRINT_BYTES = 16
DIGEST_BYTES = 8


def seed_fingerprint(policy_id: str, question_id: str) -> bytes:
    """Name the empty prefix of a policy on a question: 16 bytes."""
    seed = blake2b(digest_size=FINGERPRINT_BYTES, person=b"unmask.tree")
    for part in (policy_id.encode(), question_id.encode()):
        # With its length in front, no part can run into the next.
        seed.update(len(part).to_bytes(4, "little") + part)
    return seed.digest()


def prefix_fingerprints(seed: bytes, tokens: Sequence[int]) -> list[bytes]:
    """Name every prefix of `tokens`, from the empty one (`seed`) to the whole: len + 1 names.

    Raises:
        ValueError: a token is no id.

    """
    return [seed, *extend(seed, pack(tokens))]


def extend(fingerprint: bytes, packed: bytes) -> list[bytes]:
    """Name the prefixes that arise from a named one by each of the packed tokens that follow."""
    chain = fingerprint
    names = []
    for at in range(0, len(packed), TOKEN_BYTES):
        chain = blake2b(
            chain + packed[at : at + TOKEN_BYTES], digest_size=FINGERPRINT_BYTES
        ).digest()
        names.append(chain)
    return names


def digest(packed: bytes) -> bytes:
    """Check a packed token sequence by itself, in one step: 8 bytes, no prefix of it named.

    It finds damage, and tells the sequences of one tree apart; it is no key.
    """
    return blake2b(packed, digest_size=FINGERPRINT_BYTES).digest()[:DIGEST_BYTES]


def tokens_digest(tokens: Sequence[int]) -> bytes:
    """The `digest` of tokens. Raises ValueError: one is no id."""
    return digest(pack(tokens))

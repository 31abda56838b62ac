"""What answers about nodes are made from, and what requests about sets of them must keep to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from unmask.v1 import diagnosis_pb2 as pb

from unmask_server.api.options import Options
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Teacher
from unmask_server.diagnosis import Algorithm
from unmask_server.nodes.diagnose import Group
from unmask_server.nodes.evidence import Evidence
from unmask_server.nodes.resolve import NodeSet
from unmask_server.tree import TreeRef, TreeView

MAX_SUMMARIZED = 1000


@dataclass(frozen=True, slots=True)
class Read:
    """Everything that an answer about some nodes is computed from."""

    nodes: NodeSet
    teachers: Sequence[Teacher]
    tree: TreeRef
    view: TreeView
    group: Group | None
    evidence: list[Evidence]

    @property
    def is_final(self) -> bool:
        """Whether only the tree can change the answer: all of its teachers say something."""
        return all(views for at in self.evidence for views in at.scores.teachers)


class VersionsRead:
    """The versions of trees that an answer is made from, each once, in the order they were read."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, int], None] = {}

    def add(self, read: Read) -> None:
        """One more read."""
        self._seen[read.tree.policy_id, read.tree.question_id, read.view.version] = None

    def messages(self) -> list[pb.TreeVersion]:
        """For the answer."""
        return [
            pb.TreeVersion(policy_id=policy, question_id=question, version=version)
            for policy, question, version in self._seen
        ]


Reader = Callable[[NodeSet, Sequence[str], Sequence[Algorithm], Options], Awaitable[Read]]


def check_alike(nodes: NodeSet, first: NodeSet, field: str) -> None:
    """Refuse nodes that do not add up with the first ones. Raises InvalidArgument."""
    if nodes.policy.id != first.policy.id:
        raise InvalidArgument(field, "of another policy than the first; ask for one at a time")
    if nodes.verifier.scale != first.verifier.scale:
        raise InvalidArgument(
            field, "its question's own objective has other units than the first's; name one"
        )

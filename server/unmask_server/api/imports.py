"""CacheService.ImportCache."""

from __future__ import annotations

from unmask.v1 import sharing_pb2 as pb

from unmask_server.api import sharing_messages as messages
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument, NotFound
from unmask_server.growth.imports import Importer
from unmask_server.reasons import Reason
from unmask_server.tree import DistributionStore

MAX_RECORDS = 10_000
"""Of one request."""


class ImportService:
    """Takes records in. Synchronous: called from threads."""

    def __init__(
        self, catalog: Catalog, importer: Importer, distributions: DistributionStore
    ) -> None:
        self._catalog = catalog
        self._importer = importer
        self._distributions = distributions

    def take(self, request: pb.ImportCacheRequest) -> pb.ImportCacheResponse:
        """Everything in a request, what is described first."""
        records = request.records
        total = sum(len(getattr(records, field.name)) for field in records.DESCRIPTOR.fields)
        if not 1 <= total <= MAX_RECORDS:
            raise InvalidArgument("records", f"{total} records; give 1 to {MAX_RECORDS}")
        if records.estimates:
            raise InvalidArgument(
                "records.estimates", "are computed from rollouts; import these instead"
            )
        registered, warnings = self._describe(records)
        key = self._verifier_key
        rollouts = [
            messages.rollout_of(m, key, f"records.rollouts[{i}]")
            for i, m in enumerate(records.rollouts)
        ]
        trajectories = [
            messages.trajectory_of(m, key, f"records.trajectories[{i}]")
            for i, m in enumerate(records.trajectories)
        ]
        entries = dict(
            messages.distribution_of(m, f"records.distributions[{i}]")
            for i, m in enumerate(records.distributions)
        )
        try:
            self._importer.check(rollouts)
            done = self._importer.rollouts(rollouts)
            new, known = self._importer.trajectories(trajectories)
        except NotFound as error:
            raise _undescribed(error) from None
        put = self._distributions.put_new(entries)
        return pb.ImportCacheResponse(
            rollouts_added=done.added,
            rollouts_known=len(rollouts) - done.added,
            rollouts_different=done.merged.different,
            outcomes_added=done.merged.outcomes_added,
            outcomes_different=done.merged.outcomes_different,
            trajectories_added=new,
            trajectories_known=known,
            distributions_added=len(put),
            distributions_known=len(records.distributions) - len(put),
            registered=registered,
            warnings=warnings,
        )

    def _describe(self, records: pb.CacheRecords) -> tuple[int, list[str]]:
        adopter = self._catalog.adopter
        done: list[tuple[bool, list[str]]] = []
        try:
            for i, verifier in enumerate(records.verifiers):
                field = f"records.verifiers[{i}]"
                done.append(adopter.verifier(messages.verifier_of(verifier, field), field))
            for i, policy in enumerate(records.policies):
                field = f"records.policies[{i}]"
                done.append(adopter.policy(messages.policy_of(policy, field), field))
            questions = [
                (
                    messages.question_of(one, self._catalog.get_verifier(one.verifier_id)),
                    one.verifier_id,
                    f"records.questions[{i}]",
                )
                for i, one in enumerate(records.questions)
            ]
            new, more = adopter.questions(questions)
            for i, teacher in enumerate(records.teachers):
                field = f"records.teachers[{i}]"
                base = teacher.teacher.base_teacher_id or None
                done.append(adopter.teacher(messages.teacher_of(teacher, field), base, field))
        except NotFound as error:
            raise _undescribed(error) from None
        warnings = dict.fromkeys([*(text for _, texts in done for text in texts), *more])
        return new + sum(is_new for is_new, _ in done), list(warnings)

    def _verifier_key(self, id_: str, field: str) -> int:
        try:
            found = self._catalog.get_verifier(id_)
        except NotFound as error:
            raise _undescribed(error) from None
        if found.id != id_:
            raise InvalidArgument(field, f"{id_!r} is no id")
        return found.key


def _undescribed(error: NotFound) -> FailedPrecondition:
    return FailedPrecondition(
        Reason.RECORD_UNDESCRIBED,
        f"{error.kind} {error.id} is not here and not described before: import the whole export, "
        f"its catalog first, or register the {error.kind}",
        kind=error.kind,
        name=error.id,
    )

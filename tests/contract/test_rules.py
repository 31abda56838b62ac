"""Requests are held to the rules that the contract states, and told which field broke which."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, sharing_pb2, trajectory_pb2
from unmask_server.api.contract import Contract, contract_pool
from unmask_server.catalog.errors import InvalidArgument

CONTRACT = Contract(contract_pool())

Told = list[tuple[str, str]]
"""Fields, and the rules that they break."""


def broken(method: str, request: Message) -> Told:
    check = CONTRACT.reader(f"/unmask.v1.{method}")
    try:
        check(request.SerializeToString())
    except InvalidArgument as error:
        return [(one.field, one.rule) for one in error.violations]
    return []


def words(method: str, request: Message) -> str:
    with pytest.raises(InvalidArgument) as caught:
        CONTRACT.reader(f"/unmask.v1.{method}")(request.SerializeToString())
    return str(caught.value)


def aligning(*algorithms: diagnosis_pb2.Algorithm) -> diagnosis_pb2.GetAlignmentRequest:
    node = diagnosis_pb2.TrajectoryPosition(trajectory="trj-1", position=0)
    return diagnosis_pb2.GetAlignmentRequest(
        node=diagnosis_pb2.NodeRef(trajectory=node), algorithms=algorithms
    )


def growing(**options: Any) -> growth_pb2.StartGrowthRequest:
    fields = {
        "request_id": "one",
        "targets": [growth_pb2.GrowthTarget(trajectory="trj-1")],
        "budget": growth_pb2.Budget(rollouts=5),
        **options,
    }
    return growth_pb2.StartGrowthRequest(**fields)


ALIGN, GROW = "DiagnosisService/GetAlignment", "GrowthService/StartGrowth"


def test_what_keeps_to_the_rules_passes() -> None:
    assert (
        broken(ALIGN, aligning(diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_JSD, beta=0.3)))
        == []
    )
    assert broken(GROW, growing()) == []
    precise = growth_pb2.Precision(half_width=0.1)
    assert broken(GROW, growing(precision=precise)) == []


def test_every_broken_rule_is_told_with_the_path_of_its_field() -> None:
    found = broken(
        "TrajectoryService/SampleTrajectories",
        trajectory_pb2.SampleTrajectoriesRequest(questions=["a", ""], count=0),
    )
    assert set(found) == {
        ("policy", "STRING_MIN_LEN"),
        ("questions[1]", "STRING_MIN_LEN"),
        ("count", "INT32_GTE_LTE"),
    }


def test_a_choice_that_was_not_made_lists_what_there_is() -> None:
    assert broken(ALIGN, diagnosis_pb2.GetAlignmentRequest()) == [("node", "REQUIRED")]
    nothing = diagnosis_pb2.GetAlignmentRequest(node=diagnosis_pb2.NodeRef())
    assert words(ALIGN, nothing) == "node: give one of trajectory, prefix"
    questions = catalog_pb2.RegisterQuestionsRequest()
    assert broken("CatalogService/RegisterQuestions", questions) == [("questions", "MESSAGE_ONEOF")]


def test_an_enum_without_or_with_an_unknown_value_lists_what_there_is() -> None:
    verifier = "CatalogService/RegisterVerifier"
    said = words(verifier, catalog_pb2.RegisterVerifierRequest())
    assert said.startswith("kind: say which: VERIFIER_KIND_LAST_NUMBER, ")
    said = words(verifier, catalog_pb2.RegisterVerifierRequest(kind=99))
    assert said.startswith("kind: 99 is none of VERIFIER_KIND_LAST_NUMBER, ")


def test_numbers_are_told_with_their_bounds() -> None:
    said = words(GROW, growing(precision=growth_pb2.Precision(half_width=0.1, flat_norm=2)))
    bounds = "must be greater than or equal to 0 and less than or equal to 1"
    assert said == f"precision.flat_norm: {bounds}, not 2"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_breaks_every_bound(value: float) -> None:
    precise = growth_pb2.Precision(half_width=value)
    assert {field for field, _ in broken(GROW, growing(precision=precise))} == {
        "precision.half_width"
    }


def test_a_rule_over_several_fields_names_the_one_that_is_wrong() -> None:
    wrong = diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL, beta=0.5)
    assert broken(ALIGN, aligning(wrong)) == [("algorithms[0].beta", "BETA_JSD_ONLY")]
    equal = growth_pb2.ALLOCATION_EQUAL
    precise = growth_pb2.Precision(half_width=0.1)
    assert broken(GROW, growing(allocation=equal, precision=precise)) == [
        ("precision", "PRECISION_ADAPTIVE_ONLY")
    ]


def test_what_a_call_samples_is_bounded_over_all_its_questions() -> None:
    def sampling(questions: int, count: int) -> Told:
        names = [f"q{i}" for i in range(questions)]
        request = trajectory_pb2.SampleTrajectoriesRequest(policy="p", questions=names, count=count)
        return broken("TrajectoryService/SampleTrajectories", request)

    assert sampling(10, 10_000) == sampling(10_000, 10) == []
    assert sampling(11, 10_000) == sampling(10_000, 11) == [("count", "COUNT_IN_ALL")]


def test_a_nul_is_refused_wherever_a_text_may_be() -> None:
    asked = aligning()
    asked.teachers.append("a\0b")
    assert broken(ALIGN, asked) == [("teachers[0]", "")]


def test_of_many_violations_some_are_told() -> None:
    def importing(count: int) -> Told:
        records = sharing_pb2.CacheRecords(rollouts=[sharing_pb2.SharedRollout()] * count)
        return broken("CacheService/ImportCache", sharing_pb2.ImportCacheRequest(records=records))

    assert len(importing(100)) == 20
    # To find all of them would take seconds.
    assert len(importing(100_000)) == 1

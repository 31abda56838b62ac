"""Algorithms as texts."""

from __future__ import annotations

import pytest
from unmask import format_algorithm, parse_algorithm
from unmask.algorithms import parse_algorithms
from unmask.v1 import diagnosis_pb2 as pb


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("reverse_kl", pb.Algorithm(loss=pb.LOSS_REVERSE_KL)),
        ("Forward-KL", pb.Algorithm(loss=pb.LOSS_FORWARD_KL)),
        ("jsd:0.5", pb.Algorithm(loss=pb.LOSS_JSD, beta=0.5)),
        ("jsd:sampled:beta=.25", pb.Algorithm(
            loss=pb.LOSS_JSD, beta=0.25, form=pb.FORM_SAMPLED)),
        ("reverse_kl:sampled", pb.Algorithm(loss=pb.LOSS_REVERSE_KL, form=pb.FORM_SAMPLED)),
        ("opd", pb.Algorithm(loss=pb.LOSS_REVERSE_KL, form=pb.FORM_SAMPLED)),
        ("grpo:sampled", pb.Algorithm(loss=pb.LOSS_GRPO, form=pb.FORM_SAMPLED)),
        ("dr_grpo:expected", pb.Algorithm(loss=pb.LOSS_DR_GRPO, form=pb.FORM_EXPECTED)),
        ("reverse_kl:temperature=0.7", pb.Algorithm(loss=pb.LOSS_REVERSE_KL, temperature=0.7)),
        ("minillm:no_single_step:ratio_clip=5", pb.Algorithm(
            loss=pb.LOSS_MINILLM, decomposition=pb.DECOMPOSITION_NONE, ratio_clip=5)),
        ("forward_kl:top_k=20:dropped", pb.Algorithm(
            loss=pb.LOSS_FORWARD_KL, top_k=20, top_k_rest=pb.TOP_K_REST_DROPPED)),
        ("jsd:0.5:reward=0.3:reward_loss=grpo:lambda=0.5", pb.Algorithm(
            loss=pb.LOSS_JSD, beta=0.5, reward_weight=0.3, reward_loss=pb.LOSS_GRPO,
            student_share=0.5)),
    ],
)  # fmt: skip
def test_texts_and_what_they_mean(text: str, algorithm: pb.Algorithm) -> None:
    assert parse_algorithm(text) == algorithm


@pytest.mark.parametrize(
    "text",
    [
        "reverse_kl",
        "forward_kl:sampled",
        "jsd:0.3:sampled:temperature=2",
        "dr_grpo",
        "minillm:sampled:no_single_step:length_normalized:ratio_clip=4",
        "reverse_kl:top_k=8:of_teacher:renormalized:token_clip=0.1",
        "forward_kl:reward=0.5:lambda=0.25:reward_loss=grpo",
    ],
)
def test_formatting_is_the_inverse(text: str) -> None:
    assert format_algorithm(parse_algorithm(text)) == text


def test_defaults_are_not_shown() -> None:
    full = pb.Algorithm(loss=pb.LOSS_REVERSE_KL, form=pb.FORM_EXPECTED, temperature=1.0)
    assert format_algorithm(full) == "reverse_kl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kl", "no loss is called 'kl'; there are forward_kl"),
        ("reverse_kl:0.5", "'0.5' is none of expected, sampled"),
        ("jsd:half", "'half' is not a number"),
        ("grpo:sampled:t=1", "'t=1' is none of"),
    ],
)
def test_texts_that_mean_nothing(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_algorithm(text)


def test_one_text_may_name_several() -> None:
    assert parse_algorithms("reverse_kl,opd") == parse_algorithms(["reverse_kl", "opd"])

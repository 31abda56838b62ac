"""Real logits: the shipped student's and teachers' along real generations of the student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2] / "examples"
QUESTIONS = ROOT / "word_problems" / "questions.jsonl"
STUDENT, TEACHER = "student", "teacher-strong"
LENGTH = 32


@dataclass(frozen=True)
class Batch:
    """Two generations side by side; after the end of the shorter one is padding."""

    student: torch.Tensor
    """Logits of each next token, float64, shape (2, tokens, vocabulary)."""
    teacher: torch.Tensor
    tokens: torch.Tensor
    """What was generated, shape (2, tokens)."""
    mask: torch.Tensor
    """1 where a token counts, likewise."""
    advantages: torch.Tensor
    """Of each generation, shape (2,)."""


@lru_cache
def models(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The student and the strong teacher."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return {
        name: AutoModelForCausalLM.from_pretrained(ROOT / "models" / name, dtype=dtype)
        for name in (STUDENT, TEACHER)
    }


@lru_cache
def batch() -> Batch:
    """The student's generations for two held-out questions, scored by the strong teacher."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / STUDENT)
    rows = [json.loads(line) for line in QUESTIONS.open()][:2]
    prompts, generated = [], []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}],
            add_generation_prompt=True, return_tensors="pt", return_dict=True,
        )["input_ids"]  # fmt: skip
        with torch.no_grad():
            whole = models()[STUDENT].generate(
                prompt, do_sample=True, temperature=0.7, max_new_tokens=LENGTH,
                attention_mask=torch.ones_like(prompt), pad_token_id=0,
            )  # fmt: skip
        prompts.append(prompt[0].tolist())
        generated.append(whole[0, prompt.shape[1] :].tolist())
    return batch_of(prompts, generated)


def batch_of(
    prompts: Sequence[list[int]],
    generated: Sequence[list[int]],
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Two generations with the logits of both models, which run in `dtype`."""
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in (STUDENT, TEACHER)}
    for prompt, tokens in zip(prompts, generated, strict=True):
        for name, model in models(dtype).items():
            with torch.no_grad():
                found = model(torch.tensor([prompt + tokens])).logits[0]
            logits[name].append(found[len(prompt) - 1 : -1].double())
    width = max(map(len, generated))

    def padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        made = torch.zeros(len(parts), width, *parts[0].shape[1:], dtype=parts[0].dtype)
        for i, part in enumerate(parts):
            made[i, : len(part)] = part
        return made

    return Batch(
        student=padded(logits[STUDENT]),
        teacher=padded(logits[TEACHER]),
        tokens=padded([torch.tensor(tokens) for tokens in generated]),
        mask=padded([torch.ones(len(tokens)) for tokens in generated]),
        advantages=torch.tensor([0.625, -0.375], dtype=torch.float64),
    )


def softmax(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    """Probabilities over the vocabulary and an empty tail, float64."""
    p = torch.softmax(logits.double() / temperature, -1).detach().numpy()
    return np.concatenate([p, np.zeros((*p.shape[:-1], 1))], -1)

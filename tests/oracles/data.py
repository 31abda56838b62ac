"""Real logits: the shipped student's and teachers' along real generations of the student."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2] / "examples"
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
def batch() -> Batch:
    """The student's generations for two held-out questions, scored by the strong teacher."""
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/student")
    models = {
        name: AutoModelForCausalLM.from_pretrained(ROOT / "models" / name, dtype=torch.float64)
        for name in ("student", "teacher-strong")
    }
    rows = [json.loads(line) for line in (ROOT / "word_problems/questions.jsonl").open()][:2]
    generated, logits = [], {name: [] for name in models}
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}],
            add_generation_prompt=True, return_tensors="pt", return_dict=True,
        )["input_ids"]  # fmt: skip
        with torch.no_grad():
            whole = models["student"].generate(
                prompt, do_sample=True, temperature=0.7, max_new_tokens=LENGTH,
                attention_mask=torch.ones_like(prompt), pad_token_id=0,
            )  # fmt: skip
            generated.append(whole[0, prompt.shape[1] :])
            for name, model in models.items():
                logits[name].append(model(whole).logits[0, prompt.shape[1] - 1 : -1])
    width = max(map(len, generated))

    def padded(parts: list[torch.Tensor]) -> torch.Tensor:
        made = torch.zeros(len(parts), width, *parts[0].shape[1:], dtype=parts[0].dtype)
        for i, part in enumerate(parts):
            made[i, : len(part)] = part
        return made

    return Batch(
        student=padded(logits["student"]),
        teacher=padded(logits["teacher-strong"]),
        tokens=padded(generated),
        mask=padded([torch.ones(len(part)) for part in generated]),
        advantages=torch.tensor([0.625, -0.375], dtype=torch.float64),
    )


def softmax(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    """Probabilities over the vocabulary and an empty tail, float64."""
    p = torch.softmax(logits.double() / temperature, -1).detach().numpy()
    return np.concatenate([p, np.zeros((*p.shape[:-1], 1))], -1)

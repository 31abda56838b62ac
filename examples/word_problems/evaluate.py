"""Success of the models in each context: ``python -m examples.word_problems.evaluate``.

Samples many solutions a question and prints a Markdown table of the share that ends in the right
``#### n`` and an end of turn, with its standard error over the questions.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples.word_problems.contexts import CONTEXTS, Row, render
from examples.word_problems.questions import load_rows
from examples.word_problems.tasks import TASKS, load_task

MODELS = Path(__file__).parents[1] / "models"
MAX_TOKENS = 96
"""Longest solution; one that is cut off has failed."""


class Solver:
    """A checkpoint that writes solutions to questions."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def prompt(self, row: Row, context: str) -> list[int]:
        """The ids of the prompt, made as the server makes them."""
        messages = [{"role": "user", "content": render(context, row)}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def solve(
        self, rows: list[Row], context: str, *, samples: int, temperature: float, seed: int = 0
    ) -> list[list[str | None]]:
        """Solutions of each row, ``samples`` each; None for one that never ended.

        Temperature 0 takes the likeliest token.
        """
        generator = torch.Generator().manual_seed(seed)
        by_length: dict[int, list[int]] = defaultdict(list)
        prompts = [self.prompt(row, context) for row in rows]
        for index, prompt in enumerate(prompts):
            by_length[len(prompt)].append(index)
        solutions: list[list[str | None]] = [[] for _ in rows]
        # Prompts of one length need no padding.
        for indices in by_length.values():
            ids = torch.tensor([prompts[index] for index in indices])
            written = self._continue(ids.repeat_interleave(samples, 0), temperature, generator)
            for number, text in enumerate(written):
                solutions[indices[number // samples]].append(text)
        return solutions

    def _continue(
        self, ids: torch.Tensor, temperature: float, generator: torch.Generator
    ) -> list[str | None]:
        """Continue prompts of one length, int64 (batch, length), to their ends of turn."""
        end = self.tokenizer.eos_token_id
        columns: list[torch.Tensor] = []
        done = torch.zeros(len(ids), dtype=torch.bool)
        cache = None
        with torch.inference_mode():
            while len(columns) < MAX_TOKENS and not done.all():
                out = self.model(ids, cache=cache, use_cache=True)
                cache = out.past_key_values
                logits = out.logits[:, -1]
                if temperature == 0:
                    ids = logits.argmax(-1, keepdim=True)
                else:
                    probabilities = torch.softmax(logits / temperature, -1)
                    ids = torch.multinomial(probabilities, 1, generator=generator)
                columns.append(ids)
                done |= ids[:, 0] == end
        texts: list[str | None] = []
        for row in torch.cat(columns, 1).tolist():
            texts.append(
                self.tokenizer.decode(row[: row.index(end)], skip_special_tokens=True)
                if end in row
                else None
            )
        return texts


def right(solution: str | None, row: Row) -> bool:
    """Whether a solution ended, with the right answer after its last ``####``."""
    found = re.findall(r"#### (\d+)", solution or "")
    return bool(found) and found[-1] == row.answer


@dataclass(frozen=True)
class Rate:
    """A share of right solutions, in [0, 1], with its standard error over questions."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ±{self.error:.2f}"


def success(
    solver: Solver, rows: list[Row], context: str, *, samples: int, temperature: float
) -> Rate:
    """Share of right solutions; needs at least two rows."""
    solved = solver.solve(rows, context, samples=samples, temperature=temperature)
    shares = [
        fmean(right(text, row) for text in texts) for row, texts in zip(rows, solved, strict=True)
    ]
    return Rate(fmean(shares), stdev(shares) / len(shares) ** 0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--only", nargs="+", help="names of models; all if left out")
    parser.add_argument("--contexts", nargs="+", choices=list(CONTEXTS), default=list(CONTEXTS))
    parser.add_argument("--task", choices=TASKS, help="its questions, not the held-out ones")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--show", type=int, default=0, help="print this many solutions a cell")
    arguments = parser.parse_args()
    names = arguments.only or sorted(
        path.parent.name for path in arguments.models.glob("*/config.json")
    )
    rows = load_task(arguments.task) if arguments.task else load_rows()
    headings = ["greedy", *arguments.contexts]
    print(f"| model | {' | '.join(headings)} |\n|---|{'---|' * len(headings)}")
    for name in names:
        solver = Solver(arguments.models / name)
        cells = [success(solver, rows, "none", samples=1, temperature=0)]
        for context in arguments.contexts:
            cells.append(
                success(
                    solver,
                    rows,
                    context,
                    samples=arguments.samples,
                    temperature=arguments.temperature,
                )
            )
        print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)
        for context in arguments.contexts if arguments.show else ():
            shown = rows[: arguments.show]
            for row, texts in zip(
                shown,
                solver.solve(shown, context, samples=1, temperature=arguments.temperature),
                strict=True,
            ):
                print(f"  {context}, {row.answer}: {texts[0]}")


if __name__ == "__main__":
    main()

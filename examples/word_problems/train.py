"""Train the models from scratch: ``python -m examples.word_problems.train --out DIR``.

Takes minutes a model on one core. Writes one ordinary Hugging Face checkpoint a model.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.word_problems.data import Example, ExampleSource, collate
from examples.word_problems.optimiser import Optimiser
from examples.word_problems.questions import held_out_signatures
from examples.word_problems.recipes import RECIPES, Recipe
from examples.word_problems.vocabulary import build_tokenizer

WARM_UP = 20
POOL = 8
"""Batches drawn at a time; each holds examples of like length, to save padding."""


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model whose vocabulary is exactly the tokenizer's.

    Llama and not Qwen2: for a Qwen2 checkpoint AutoTokenizer ignores the class that the
    checkpoint names and puts Qwen's byte-level splitting in place of ours.
    """
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def drill_share(progress: float) -> float:
    """Share of drills among the examples: half at first, a tenth at the end of training."""
    return 0.5 - 0.4 * min(1.0, progress / 0.7)


def rate_factor(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, flat, then linear to nearly zero."""
    remaining = (steps - step) / steps
    return min(1.0, (step + 1) / WARM_UP, max(remaining / 0.5, 0.01))


def draw_pools(source: ExampleSource, recipe: Recipe) -> Iterator[list[Example]]:
    """Everything that a recipe's training draws, a pool of batches at a time."""
    for pool in range(math.ceil(recipe.steps / POOL)):
        share = drill_share(pool * POOL / recipe.steps)
        yield [source.draw(share) for _ in range(POOL * recipe.batch)]


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Train a recipe's model, printing the loss (nats per learned token) every 50 steps."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, tokenizer)
    source = ExampleSource(recipe, tokenizer.backend_tokenizer, held_out_signatures())
    optimiser = Optimiser(model)
    started, tokens, running = time.monotonic(), 0, math.nan
    order = torch.Generator().manual_seed(recipe.seed)
    for pool, examples in enumerate(draw_pools(source, recipe)):
        examples.sort(key=lambda example: len(example.ids))
        for offset, batch in enumerate(torch.randperm(POOL, generator=order).tolist()):
            step = pool * POOL + offset
            chosen = examples[batch * recipe.batch : (batch + 1) * recipe.batch]
            ids, labels = collate(chosen, tokenizer.pad_token_id)
            logits = model(ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
            loss.backward()
            optimiser.step(rate_factor(step, recipe.steps))
            tokens += ids.numel()
            running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
            if (step + 1) % 50 == 0:
                seconds = time.monotonic() - started
                print(
                    f"{recipe.name}: step {step + 1}, loss {running:.3f}, "
                    f"{tokens / 1e6:.2f}M tokens, {seconds:.0f} s",
                    flush=True,
                )
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write config, weights (bfloat16), tokenizer, chat template and generation settings."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.7,
        top_p=1.0,
        top_k=0,
    )
    model.to(torch.bfloat16).save_pretrained(directory)
    # A template inside tokenizer_config.json is read by every engine, a separate file by some.
    tokenizer.save_pretrained(directory, save_jinja_files=False)


def main() -> None:
    """Train the chosen models, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoints")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    arguments = parser.parse_args()
    tokenizer = build_tokenizer()
    for name in arguments.only:
        save(train(RECIPES[name], tokenizer), tokenizer, arguments.out / name)


if __name__ == "__main__":
    main()

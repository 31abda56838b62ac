"""Tiny randomly initialised checkpoints in ordinary Hugging Face format, made in a moment."""

from __future__ import annotations

from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

WORDS = ("<eos>", "<unk>", "q", ":", "a", "0", "1", "2", "3", "so", "####", "The", "correct",
         "answer", "is", ".", "A", "solution", "wrong", "attempt", "Hint")  # fmt: skip

CORPUS = [
    "The correct answer is 12. A correct solution: 3 + 4 = 7 so #### 7",
    "A wrong attempt: hmm, let me count again; Hint: add the two numbers",
    "How many apples are left? Tom has 5 apples and eats 2 of them.",
]

CHAT = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}a :{% endif %}"
)


def word_level() -> Tokenizer:
    """Whole words split at white space; 21 ids, id 0 ends a generation."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return tokenizer


def byte_bpe(size: int = 300) -> Tokenizer:
    """Llama-like byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentence_piece(size: int = 120) -> Tokenizer:
    """Gemma-like Unigram with a visible space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],
        unk_token="<unk>",
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def save(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    kind: str = "qwen2",
    seed: int = 0,
    scale: float = 1.0,
    padding: int = 0,
    chat: str | None = CHAT,
) -> Path:
    """Write a random model of `kind` (`qwen2`, `llama`, `gemma`) with that tokenizer.

    Args:
        folder: where to; made if missing.
        tokenizer: has an `<eos>`.
        kind: the architecture.
        seed: of the weights.
        scale: of the output head; larger makes the model surer of what it says.
        padding: extra columns of the logits that have no token.
        chat: chat template; None for a model without one.

    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        LlamaConfig,
        PreTrainedTokenizerFast,
        Qwen2Config,
    )

    eos = tokenizer.token_to_id("<eos>")
    common = {
        "vocab_size": tokenizer.get_vocab_size() + padding,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": eos,
        "bos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    configs = {
        "qwen2": lambda: Qwen2Config(**common),
        "llama": lambda: LlamaConfig(**common),
        "gemma": lambda: Gemma2Config(**common, head_dim=8, sliding_window=16),
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configs[kind]())
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.normal_(0.0, scale * head.shape[1] ** -0.5)
    model.generation_config.eos_token_id = eos
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", chat_template=chat
    ).save_pretrained(folder)
    return folder

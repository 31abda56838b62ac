"""From final hidden states to logits, apart from the rest of the model.

So logits are computed only where they are wanted, which is most of the work with a vocabulary of
50,000, and again for a remembered hidden state without running the model.
"""

from __future__ import annotations

from typing import Any

import torch


class Head:
    """A causal language model's output layer and what its family does to the logits after it.

    Whether that is all the model does is checked when it is loaded, against its own logits.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        config = model.config.get_text_config()
        self.vocab_size = vocab_size
        """Columns that have a token; those after it are padding and cut off."""
        self._layer = model.get_output_embeddings()
        self._factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
        self._factor /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        self._softcap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, vocabulary), of hidden states (n, width)."""
        logits = self._layer(hidden)[..., : self.vocab_size]
        if self._factor != 1.0:
            logits = logits * self._factor
        if self._softcap is not None:
            logits = (logits / self._softcap).tanh() * self._softcap
        return logits

"""What an engine has done since it was opened, for tests, benchmarks and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counters that only grow, except `rows_running` and `cached_tokens`."""

    prompt_tokens_computed: int = 0
    """Tokens of ``prompt + forced`` (and of scored sequences) that went through the model."""
    prompt_tokens_shared: int = 0
    """Those that did not have to: their keys and values were there already."""
    tokens_sampled: int = 0
    forward_steps: int = 0
    """Forward passes that gave next tokens, one a step of the running batch."""
    prefill_passes: int = 0
    """Forward passes over prompts, forced prefixes and scored sequences."""
    rollouts_finished: int = 0
    rollouts_abandoned: int = 0
    """Running or waiting when their caller left, or lost to an engine failure."""
    scores_computed: int = 0
    """Score requests that needed the model's body."""
    scores_remembered: int = 0
    """Score requests answered from remembered hidden states."""
    rows_running: int = 0
    cached_tokens: int = 0
    """Tokens whose keys and values are held for sharing."""

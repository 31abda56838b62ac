"""The table of docs/oracles.md: ``python -m tests.oracles.table``."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import torch
from unmask import format_algorithm
from unmask_server.api.algorithms import algorithm_message

from tests.oracles.data import batch
from tests.oracles.losses import largest_difference, oracles


def main() -> None:
    """Print it."""
    warnings.filterwarnings("ignore")
    data = batch()
    print(f"trl {version('trl')}, verl {version('verl')}, torch {version('torch')}; "
          f"{int(data.mask.sum())} tokens of {len(data.mask)} generations, vocabulary "
          f"{data.student.shape[-1]}\n")  # fmt: skip
    print("| ours | theirs | undone | float32 | float64 |")
    print("|---|---|---|---|---|")
    for oracle in oracles():
        low = largest_difference(oracle, data, torch.float32)
        high = largest_difference(oracle, data, torch.float64)
        double = "float32 inside" if oracle.float32_only else f"{high:.1e}"
        name = format_algorithm(algorithm_message(oracle.algorithm))
        undone = oracle.reduction + (f"; {oracle.note}" if oracle.note else "")
        print(f"| `{name}` | {oracle.name}: `{oracle.where}` | {undone} | {low:.1e} | {double} |")


if __name__ == "__main__":
    main()

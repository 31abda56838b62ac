"""Short word problems, and small models trained from scratch to solve them.

Modules: :mod:`problems` (questions), :mod:`solutions` (worked solutions and the ways of writing
them), :mod:`contexts` (what a model is shown beside the question), :mod:`vocabulary` (the
tokenizer), :mod:`recipes` (one per model), :mod:`optimiser`, :mod:`train`, :mod:`evaluate` and
:mod:`questions` (writes the held-out questions).
"""

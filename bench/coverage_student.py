"""Nodes of the shipped student with what success is at them, from very many rollouts.

`python -m bench.coverage_student` makes the file (some ten minutes on two idle cores); `load` reads
it. Prompts, temperature and limit are those of `make demo`.

Rollouts, `PARTICLES` or `FEWER` after each token, are counted and not stored: those that share a
prefix are computed once, and how many of them take which next token is drawn systematically (one
uniform number, evenly spaced marks), which is unbiased and errs less than independent draws would.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.coverage_decoder import Student
from bench.coverage_student_file import PATH
from examples.word_problems.contexts import Row
from examples.word_problems.evaluate import MODELS, Solver
from examples.word_problems.questions import load_rows

FloatArray = NDArray[np.float64]

TEMPERATURE = 0.7
MAX_TOKENS = 80
"""Of a whole generation; one that is cut off has failed."""
CANDIDATES = 50
NEGLIGIBLE = 1e-5
"""A token to which neither student nor teacher gives so much is part of the tail."""
PARTICLES = 512
"""Rollouts after each token whose probability is `LIKELY` or more."""
FEWER = 128
"""After each of the others, and of the tail."""
LIKELY = 0.01
NODES_A_QUESTION = 7
LEAST_SPREAD = 0.03
"""Nodes where the likeliest token has all but so much are trivially flat and left out."""
TEACHERS = (("teacher-strong", "answer"), ("teacher-verbose", "none"), ("teacher-strong", "none"))
"""Which teacher a question's nodes have, by turns."""


class Grader:
    """`hash_answer` on token ids: the number after the last `####` of a solution that ended."""

    def __init__(self, solver: Solver, row: Row) -> None:
        names = solver.tokenizer.get_vocab()
        self.mark, self.end = names["####"], names["<eos>"]
        self.answer = names[row.answer]
        self.is_number = np.zeros(len(names), dtype=bool)
        self.is_number[[index for name, index in names.items() if name.isdigit()]] = True

    def start(self, tokens: list[int]) -> tuple[bool, bool]:
        """Whether the text so far ends in the mark, and whether its last answer is right."""
        marked, right = np.zeros(1, dtype=bool), np.zeros(1, dtype=bool)
        for token in tokens:
            marked, right = self.after(marked, right, np.array([token]))
        return bool(marked[0]), bool(right[0])

    def after(
        self, marked: NDArray[np.bool_], right: NDArray[np.bool_], tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The same one token later, a row each."""
        answered = marked & self.is_number[tokens]
        return tokens == self.mark, np.where(answered, tokens == self.answer, right)


def spread_out(
    counts: NDArray[np.int64], p: FloatArray, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many of each row's particles take which token, shape of `p`; systematic sampling."""
    edges = np.cumsum(p, axis=1)
    edges = edges / edges[:, -1:] * counts[:, None]
    below = np.ceil(edges - rng.random((len(counts), 1)))
    below[:, -1] = counts
    return np.diff(below, axis=1, prepend=0.0).clip(0).astype(np.int64)


def success_after(
    student: Student,
    grader: Grader,
    prompt: list[int],
    tokens: list[int],
    starts: NDArray[np.int64],
    rng: np.random.Generator,
) -> FloatArray:
    """Share of rollouts that succeed after each group of next tokens, shape (groups,).

    Args:
        student: of whom.
        grader: of its question.
        prompt: its ids.
        tokens: the prefix generated so far.
        starts: particles that begin with each token, shape (groups, V).
        rng: of the draws.

    """
    _, cache = student.prefix(prompt + tokens)
    marked, right = (np.array([state]) for state in grader.start(tokens))
    groups, wins = np.arange(len(starts)), np.zeros(len(starts))
    children, depth = starts, len(tokens)
    while True:
        parents, taken = np.nonzero(children)
        counts = children[parents, taken]
        parents_of_state = parents if len(marked) > 1 or depth > len(tokens) else parents * 0
        groups = groups[parents]
        marked, right = grader.after(marked[parents_of_state], right[parents_of_state], taken)
        depth += 1
        ended = taken == grader.end
        np.add.at(wins, groups[ended & right], counts[ended & right])
        live = ~ended
        if depth >= MAX_TOKENS or not live.any():
            shares: FloatArray = wins / starts.sum(axis=1)
            return shares
        groups, counts, marked, right = groups[live], counts[live], marked[live], right[live]
        rows = torch.from_numpy(parents[live])
        cache.own = [(k[rows], v[rows]) for k, v in cache.own]
        position = len(prompt) + depth - 1
        logits = student.step(torch.from_numpy(taken[live]), position, cache)
        p = torch.softmax(logits / TEMPERATURE, -1).numpy().astype(np.float64)
        children = spread_out(counts, p, rng)


def _nodes_of(question: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rng = np.random.default_rng((question, 2026))
    row = load_rows()[question]
    solver, student = Solver(MODELS / "student"), Student(MODELS / "student")
    name, context = TEACHERS[question % len(TEACHERS)]
    teacher, reads = Student(MODELS / name), Solver(MODELS / name)
    prompt, shown = solver.prompt(row, "none"), reads.prompt(row, context)
    grader = Grader(solver, row)
    found: list[dict[str, Any]] = []
    seen: set[tuple[int, ...]] = set()
    while len(found) < NODES_A_QUESTION:
        tokens = _generation(student, prompt, grader.end, rng)
        places = [depth for depth in range(len(tokens)) if tuple(tokens[:depth]) not in seen]
        for depth in rng.permutation(places)[:6].tolist():
            prefix = tokens[:depth]
            logits, _ = student.prefix(prompt + prefix)
            theirs, _ = teacher.prefix(shown + prefix)
            sampling, p, t = (
                torch.softmax(raw.double(), -1).numpy()
                for raw in (logits / TEMPERATURE, logits, theirs)
            )
            if 1.0 - sampling.max() < LEAST_SPREAD or tuple(prefix) in seen:
                continue
            seen.add(tuple(prefix))
            ids = np.argsort(-sampling)[:CANDIDATES]
            ids = ids[np.maximum(p, t)[ids] >= NEGLIGIBLE]
            starts = np.zeros((len(ids) + 1, len(p)), dtype=np.int64)
            likely = sampling[ids] >= LIKELY
            starts[np.arange(len(ids)), ids] = np.where(likely, PARTICLES, FEWER)
            rest = sampling.copy()
            rest[ids] = 0.0
            if rest.sum() <= 0.0:
                rest = sampling.copy()  # Counts nowhere.
            starts[-1] = spread_out(np.array([FEWER]), rest[None], rng)[0]
            s = success_after(student, grader, prompt, prefix, starts, rng)
            found.append(
                {
                    "question": question,
                    "depth": depth,
                    "ids": ids,
                    "sampling": _with_tail(sampling, ids),
                    "p": _with_tail(p, ids),
                    "t": _with_tail(t, ids),
                    "s": s,
                    "ends": ids == grader.end,
                }
            )
            if len(found) == NODES_A_QUESTION:
                break
    return found


def _generation(
    student: Student, prompt: list[int], end: int, rng: np.random.Generator
) -> list[int]:
    logits, cache = student.prefix(prompt)
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        p = torch.softmax(logits.double() / TEMPERATURE, -1).numpy()
        tokens.append(int(rng.choice(len(p), p=p / p.sum())))
        if tokens[-1] == end:
            break
        logits = student.step(torch.tensor(tokens[-1:]), len(prompt) + len(tokens) - 1, cache)[0]
    return tokens


def _with_tail(p: FloatArray, ids: NDArray[np.int64]) -> FloatArray:
    return np.append(p[ids], max(0.0, 1.0 - float(p[ids].sum())))


def make(path: Path, *, questions: int = 40, particles: int = PARTICLES, workers: int = 2) -> None:
    """Write the truth of `NODES_A_QUESTION` nodes of each of so many questions."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        jobs = [pool.apply_async(_nodes_of, (q,)) for q in range(questions)]
        nodes = [node for job in jobs for node in job.get()]
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {
        key: np.concatenate([node[key] for node in nodes])
        for key in ("ids", "sampling", "p", "t", "s", "ends")
    }
    lengths = np.array([len(node["ids"]) for node in nodes])
    about = np.array([(node["question"], node["depth"]) for node in nodes])
    arrays: dict[str, Any] = {**flat, "lengths": lengths, "about": about}
    np.savez_compressed(path, **arrays)


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth-file", type=Path, default=PATH)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    make(options.truth_file, questions=options.questions, workers=options.workers)
    print(json.dumps({"truth_file": str(options.truth_file)}))


if __name__ == "__main__":
    main()

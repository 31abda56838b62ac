"""What choosing by an estimate does to it: success-blind teachers, kept tokens, the best of four.

Nodes of eight tokens with known success, and teachers that know nothing of it. Success lies around
the node's own level with a spread of 0.1, or one between 0.01 and 0.5 (mixed: log-uniform by node).
Values are mean cosines with the step of reverse KL unless they say gain, or gaps of these.

* gap: correct less incorrect generations. A generation's token is drawn from P, it succeeds with
  that token's success. Estimates are from one forced rollout through each token, and from the
  generation's own counted in or left out. The gap beyond a control is that of the teacher less that
  of a teacher made from the student alone (`diagnosis.tempered`, `diagnosis.permuted`).
* kept: tokens whose cosine is estimated to be above zero, with rollouts drawn from P: what the
  estimates that chose them say (naive), what as many other rollouts say, what the posterior says
  (`diagnosis.selection`), and the truth. Served are those with a score, neither FLAT nor without;
  their gain is told by shrunk draws, beside the unshrunk ones that serve where nothing was chosen.
* best: the best of four equal teachers at each node, likewise, and how sure the posterior is of it,
  at a node and over sets of nodes, beside how often it is right.

`python -m bench.selection --table` prints tables instead of figures. Under a minute; for less noise
`--repetitions 50 --only kept`: these parts on 20,000 nodes, in some five minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from unmask_server.diagnosis import (
    Algorithm,
    Loss,
    NodePosterior,
    NodeTerms,
    SetTerms,
    descent,
    entropy,
    measure,
    permuted,
    tempered,
)
from unmask_server.diagnosis.alignment import Measured
from unmask_server.diagnosis.resampling import Resamples
from unmask_server.diagnosis.selection import is_kept, shares_of_best
from unmask_server.diagnosis.sets import probabilities_best

from bench.figures import figure, show
from bench.selection_worlds import (
    TOKENS,
    FloatArray,
    cosines,
    mean_gain,
    plug_in,
    with_generations,
    world,
)

Found = dict[tuple[str, str], float]
"""By row and column; every row has a column `true`."""

REVERSE = Algorithm(Loss.REVERSE_KL)
IDS = np.arange(TOKENS, dtype=np.int32)
REPETITIONS = 3
TEACHERS = 4
SET = 25
"""Nodes of a set in which the best teacher is sought."""
SETS = {1: "probability, sets of one trajectory", 5: "probability, sets of five questions"}
"""By questions of a set."""
ENOUGH = 20
"""Served nodes below this are too few for a mean."""


def gaps(seed: int, count: int, spread: float, *, with_posterior: bool = False) -> Found:
    """Gaps between correct and incorrect generations, by teacher."""
    nodes = world(seed, count, concentration=1.0, spread=spread)
    own, gap = with_generations(nodes)
    n = np.where(np.arange(TOKENS + 1) < TOKENS, np.ones_like(nodes.p), 0.0)
    wins = nodes.rng.binomial(n.astype(int), nodes.s).astype(float)
    # What is known at the nodes of correct and of incorrect generations.
    known = {"counted in": [(n + own, wins + own), (n + own, wins)], "left out": [(n, wins)]}
    gradients = {name: [plug_in(nodes, *one) for one in pair] for name, pair in known.items()}
    gradients["true"] = [nodes.g]
    posteriors: dict[str, list[list[NodePosterior]]] = {}
    if with_posterior:
        for name, pair in known.items():
            posteriors[name] = [nodes.posteriors(*one) for one in pair]
    found: Found = {}
    for teacher, exponent, noise in (
        ("flatter", 0.5, 0.0),
        ("sharper", 1.5, 0.0),
        ("random", 1, 1),
    ):
        t = nodes.teacher(exponent, noise)
        d = descent(REVERSE, nodes.p, t)
        unit = d / np.sqrt(np.mean(np.sum(d * d, axis=1)))
        for name, both in gradients.items():
            found[teacher, name] = gap(*(cosines(g, d) for g in both))
            found[f"{teacher}, gain", name] = gap(*(np.sum(g * unit, axis=1) for g in both))
        for name, drawn in posteriors.items():
            found[f"{teacher}, posterior", name] = gap(
                *(expected(believed(one, nodes.p, t), d) for one in drawn)
            )
            found[f"{teacher}, posterior", "true"] = found[teacher, "true"]
    return found


def controlled(seed: int, count: int, spread: float) -> Found:
    """Of a teacher that is flatter and random: its gap, and what its controls leave of it."""
    nodes = world(seed, count, concentration=1.0, spread=spread)
    _, gap = with_generations(nodes)
    t = nodes.teacher(0.5, 0.5)
    controls = {
        "beyond tempered": [tempered(p, entropy(q)) for p, q in zip(nodes.p, t, strict=True)],
        "beyond permuted": [
            permuted(p, q, seed=i) for i, (p, q) in enumerate(zip(nodes.p, t, strict=True))
        ],
    }
    alone = cosines(nodes.g, descent(REVERSE, nodes.p, t))
    row = "flatter and random"
    found: Found = {(row, "true"): gap(alone)}
    for name, made in controls.items():
        found[row, name] = gap(alone - cosines(nodes.g, descent(REVERSE, nodes.p, np.stack(made))))
    return found


def believed(drawn: list[NodePosterior], p: FloatArray, t: FloatArray) -> list[FloatArray]:
    """Draws of g at each node as they are for its teacher."""
    return [
        one.believed_of(student, teacher).gradient
        for one, student, teacher in zip(drawn, p, t, strict=True)
    ]


def expected(gradients: list[FloatArray], d: FloatArray) -> FloatArray:
    """The posterior's mean cosine at each node."""
    return np.array([cosines(g, step).mean() for g, step in zip(gradients, d, strict=True)])


def kept(seed: int, count: int, each: int, spread: float | None = 0.1) -> Found:
    """Mean cosines of kept tokens, by what kept them; two teachers of opposite steps at a node."""
    nodes = world(seed, count, concentration=0.5, spread=spread)
    t = nodes.teacher(1.0, 1.0)
    # P exp(-x) for P exp(x): the two average out that one set of teachers is luckier than another.
    other = np.divide(nodes.p**2, t, out=np.zeros_like(t), where=t > 0.0)
    n, wins = nodes.rollouts(each)
    first = nodes.posteriors(n, wins)
    g, again = plug_in(nodes, n, wins), plug_in(nodes, *nodes.rollouts(each))
    p, g, again, truth = (np.concatenate([x, x]) for x in (nodes.p, g, again, nodes.g))
    t = np.concatenate([t, other / other.sum(axis=1, keepdims=True)])
    d, drawn = descent(REVERSE, p, t), first * 2
    gradients_drawn = believed(drawn, p, t)
    columns = {
        "naive": cosines(g, d),
        "other rollouts": cosines(again, d),
        "posterior": expected(gradients_drawn, d),
        "true": cosines(truth, d),
    }
    served, terms = np.zeros(len(p), dtype=bool), SetTerms()
    for i, one in enumerate(drawn):
        measured = measure(one, REVERSE, p[i], t[i], ids=IDS)
        served[i] = measured.cosine is not None and is_kept(measured.cosine)
        terms.add(NodeTerms("", "", measured.alignment.status, 0.0, measured.draws))
    chosen = {
        "by the estimate": columns["naive"] > 0.0,
        "by the posterior": np.array(
            [is_kept(cosines(one, step)) for one, step in zip(gradients_drawn, d, strict=True)]
        ),
    }
    if served.sum() >= ENOUGH:
        chosen["served"] = served
    found = {
        (row, column): float(values[mask].mean())
        for row, mask in chosen.items()
        for column, values in columns.items()
    }
    shrunk = np.stack([one.mean(axis=0) for one in gradients_drawn])
    unshrunk = np.stack([one.unshrunk_gradient.mean(axis=0) for one in drawn])
    gradients = {"naive": g, "other rollouts": again, "posterior": shrunk, "true": truth}
    for row, mask in chosen.items():
        for column, gradient in gradients.items():
            found[f"{row}, gain", column] = mean_gain(gradient[mask], d[mask])
    summary = terms.summarize(seed=seed).kept
    if "served" in chosen and summary is not None and summary.mean_cosine is not None:
        assert summary.gain_per_unit_step is not None
        found["served", "posterior"] = summary.mean_cosine.median
        found["served, gain", "posterior"] = summary.gain_per_unit_step.median / served.sum() ** 0.5
        found["served, gain", "unshrunk"] = mean_gain(unshrunk[served], d[served])
    return found


def best(seed: int, count: int, each: int, spread: float | None = 0.1) -> Found:
    """The best teacher of each node and of each set, as it looks and as it is."""
    nodes = world(seed, count, concentration=0.5, spread=spread)
    ts = [nodes.teacher(1.0, 1.0) for _ in range(TEACHERS)]
    ds = np.stack([descent(REVERSE, nodes.p, t) for t in ts])
    n, wins = nodes.rollouts(each)
    drawn = nodes.posteriors(n, wins)
    gradients = [believed(drawn, nodes.p, t) for t in ts]
    stated = np.stack(
        [
            [cosines(*pair) for pair in zip(*both, strict=True)]
            for both in zip(gradients, ds, strict=True)
        ]
    )
    columns = {
        "naive": cosines(plug_in(nodes, n, wins), ds),
        "other rollouts": cosines(plug_in(nodes, *nodes.rollouts(each)), ds),
        "posterior": stated.mean(axis=2),
        "true": cosines(nodes.g, ds),
    }
    shares = np.array([shares_of_best(list(stated[:, i])) for i in range(count)]).T
    chosen = {"by the estimate": columns["naive"], "by the posterior": shares}
    at = np.arange(count)
    found = {
        (row, column): float(values[by.argmax(axis=0), at].mean())
        for row, by in chosen.items()
        for column, values in columns.items()
    }
    found["probability, nodes", "posterior"] = float(shares.max(axis=0).mean())
    right = shares.argmax(axis=0) == columns["true"].argmax(axis=0)
    found["probability, nodes", "true"] = float(right.mean())
    for start in range(0, count, SET):
        chunk = range(start, start + SET)
        one = [[measure(drawn[i], REVERSE, nodes.p[i], t[i], ids=IDS) for i in chunk] for t in ts]
        gain = np.sum(nodes.g[chunk] * ds[:, chunk], axis=(1, 2))
        unit = gain / np.sqrt(np.sum(ds[:, chunk] ** 2, axis=(1, 2)))
        for questions, row in SETS.items():
            share = set_shares(one, questions)
            hit = float(share.argmax() == unit.argmax())
            for column, value in (("posterior", float(share.max())), ("true", hit)):
                found[row, column] = found.get((row, column), 0.0) + value * SET / count
    return found


def set_shares(measured: list[list[Measured]], questions: int) -> FloatArray:
    """How likely each teacher is the best over some nodes, which belong to so many questions."""
    sets = [SetTerms() for _ in measured]
    for terms, nodes in zip(sets, measured, strict=True):
        for i, one in enumerate(nodes):
            key = str(i % questions)
            terms.add(NodeTerms(key, key, one.alignment.status, 0.0, one.draws))
    resamples = Resamples.of(sets[0].keys, seed=0)
    return np.array([p or 0.0 for p in probabilities_best([one.on(resamples) for one in sets])])


PARTS: dict[str, Callable[[int], Found]] = {
    "gap, spread 0.3": lambda seed: gaps(seed, 40_000, 0.3),
    "gap, spread 0.1": lambda seed: gaps(seed, 40_000, 0.1),
    "gap, spread 0.1, of 1200 nodes": lambda seed: gaps(seed, 400, 0.1, with_posterior=True),
    "gap, spread 0.3, controlled": lambda seed: controlled(seed, 2500, 0.3),
    "kept, 8 rollouts": lambda seed: kept(seed, 400, 8),
    "kept, 128 rollouts": lambda seed: kept(seed, 400, 128),
    "kept, 8 rollouts, mixed": lambda seed: kept(seed, 400, 8, None),
    "kept, 128 rollouts, mixed": lambda seed: kept(seed, 400, 128, None),
    "best of 4, 32 rollouts": lambda seed: best(seed, 400, 32),
    "best of 4, 32 rollouts, mixed": lambda seed: best(seed, 400, 32, None),
}


def print_table(part: str, found: list[Found]) -> None:
    """Means over the repetitions, a row each; the truth last."""
    columns = [c for c in dict.fromkeys(c for _, c in found[0]) if c != "true"] + ["true"]
    print(f"| {part} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in dict.fromkeys(row for row, _ in found[0]):
        cells = [
            f"{np.mean([one[row, c] for one in found]):.3f}" if (row, c) in found[0] else ""
            for c in columns
        ]
        print(f"| {row} | {' | '.join(cells)} |")
    print(flush=True)


def show_figures(part: str, found: list[Found]) -> None:
    """Each value beside the truth of what was chosen."""
    for row, column in found[0]:
        if column == "true":
            continue
        # The random teacher's true gap is nearly zero: its others are beside the flatter one's.
        beside = row.replace("random", "flatter") if row.startswith("random") else row
        ours = [one[row, column] for one in found]
        theirs = [one[beside, "true"] for one in found]
        unit = "share" if row.startswith("probability") else "cosine"
        unit = "gain" if row.endswith("gain") else unit
        show(figure(f"selection: {part}: {row}, {column}", unit, ours, theirs))


def main() -> None:
    """Print all figures, or tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print tables in Markdown instead")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of other nodes each")
    parser.add_argument("--only", default="", help="the parts whose names begin so")
    options = parser.parse_args()
    show_part = print_table if options.table else show_figures
    for part, simulate in PARTS.items():
        if part.startswith(options.only):
            show_part(part, [simulate(seed) for seed in range(options.repetitions)])


if __name__ == "__main__":
    main()

"""What was found, to be read; and the table of docs/fuzz.md."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.drive import as_text
from tests.fuzz.rpcs import Rpc
from tests.fuzz.shrink import Case

BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"
RAW_MIB = 8 * 32
"""What eight raw connections at once may add: frames on their way, and headers not ended."""
GRADER_MIB = 192.0
"""What a process that grades may hold: SymPy is most of it."""
_FIRST = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION",
          "RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")  # fmt: skip
_LAST = ("UNKNOWN", "INTERNAL", "DATA_LOSS")


@dataclass
class Result:
    """What became of one store's server."""

    store: str
    seed: int
    requests: int
    seconds: float
    counts: Counter[tuple[str, str]]
    refused: dict[str, str]
    """Valid requests that were not answered, with what was said instead."""
    cases: list[Case]
    complaints: list[str]
    """What the server's log says of errors that nobody foresaw."""
    changed: list[str]
    """Normal calls that are answered otherwise than before."""
    fsck: list[str]
    warm: float
    """MiB of the server, at most, over the first requests."""
    peak: float
    """MiB at most."""
    bound: float
    """MiB that its settings allow."""
    raw_peak: float
    """MiB at most with raw connections, too."""
    grader: float
    """MiB at most of the largest grader."""
    frames: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What raw connections ended in."""
    resident: Sequence[float] = ()
    slowest: Mapping[str, float] = field(default_factory=dict)
    is_alive: bool = True

    @property
    def violations(self) -> list[str]:
        """What may not be."""
        found = [f"{case.sent.path}: {case.problem}" for case in self.cases]
        found += [f"in the log: {text[-300:]}" for text in sorted(set(self.complaints))]
        found += [f"answered otherwise than before: {path}" for path in self.changed]
        found += [f"fsck: {line}" for line in self.fsck]
        if self.peak > self.bound:
            found.append(f"{self.peak:.0f} MiB of memory are more than {self.bound:.0f}")
        if self.raw_peak > self.bound + RAW_MIB:
            found.append(f"{self.raw_peak:.0f} MiB of memory after raw connections")
        if self.grader > GRADER_MIB:
            found.append(f"{self.grader:.0f} MiB of a grader")
        if not self.is_alive:
            found.append("the server ended")
        return found


def tell(result: Result, rpcs: Mapping[str, Rpc], save: Path) -> None:
    """Print what was found, and save what can be replayed."""
    pace = result.requests / result.seconds
    print(f"{result.store}: {result.requests} requests in {result.seconds:.0f} s ({pace:.0f} a "
          f"second), memory {result.warm:.0f} MiB when warm, {result.peak:.0f} at most, bound "
          f"{result.bound:.0f}")  # fmt: skip
    late = sorted(result.slowest.items(), key=lambda item: -item[1])[:5]
    print("slowest: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in late))
    step = max(1, len(result.resident) // 20)
    print("memory over time: " + " ".join(f"{one:.0f}" for one in result.resident[::step]))
    for name, said in result.refused.items():
        print(f"a valid request was refused: {name}: {said[:200]}")
    for case in result.cases:
        save.mkdir(parents=True, exist_ok=True)
        name = case.sent.path.rpartition("/")[2]
        path = save / f"{result.store}-{result.seed}-{case.index}-{name}.json"
        path.write_text(case.sent.to_json())
        print(f"\nFOUND {case.sent.path} (request {case.index} of seed {result.seed}, saved as "
              f"{path}{'' if case.again else '; it did not come again'})\n{case.problem}\n"
              f"{as_text(rpcs[case.sent.path], case.sent.data)}\n{case.log[-2500:]}")  # fmt: skip
    for line in result.violations:
        print(f"VIOLATION {line}")


def table(results: Sequence[Result]) -> str:
    """Counts by RPC and outcome, over all stores, in Markdown."""
    counts: Counter[tuple[str, str]] = Counter()
    for result in results:
        counts += result.counts
    seen = {code for _, code in counts}
    others = sorted(seen - {*_FIRST, *_LAST})
    codes = [code for code in (*_FIRST, *others, *_LAST) if code in seen or code in _LAST[:2]]
    lines = [("RPC", "requests", *codes), ("---",) * (2 + len(codes))]
    for rpc in sorted({rpc for rpc, _ in counts}):
        row = [counts[rpc, code] for code in codes]
        lines.append((rpc, *(f"{n:,}" for n in (sum(row), *row))))
    total = [sum(n for (_, c), n in counts.items() if c == code) for code in codes]
    lines.append(("**all**", *(f"**{n:,}**" for n in (sum(total), *total))))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def frames_table(results: Sequence[Result]) -> str:
    """What raw connections ended in, over all stores."""
    counts: Counter[tuple[str, str]] = Counter()
    for result in results:
        counts += result.frames
    lines = ["| attack | connections | how they ended |", "| --- | --- | --- |"]
    for attack in sorted({attack for attack, _ in counts}):
        ends = {end: n for (name, end), n in counts.items() if name == attack}
        told = ", ".join(f"{end} {n:,}" for end, n in sorted(ends.items(), key=lambda x: -x[1]))
        lines.append(f"| {attack} | {sum(ends.values()):,} | {told} |")
    return "\n".join(lines)


def servers_table(results: Sequence[Result]) -> str:
    """One line a server."""
    lines = [
        "| store | seed | requests | seconds | violations | fsck findings | MiB when warm | most "
        "| bound | with raw connections | a grader |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        lines.append(
            f"| {one.store} | {one.seed} | {sum(one.counts.values()):,} | {one.seconds:.0f} | "
            f"{len(one.violations)} | {len(one.fsck)} | {one.warm:.0f} | {one.peak:.0f} | "
            f"{one.bound:.0f} | {one.raw_peak:.0f} | {one.grader:.0f} |"
        )
    return "\n".join(lines)


def write_into(path: Path, results: Sequence[Result]) -> None:
    """Replace the tables in a page."""
    page = path.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n\n".join((servers_table(results), table(results), frames_table(results)))
    day = time.strftime("%Y-%m-%d")
    path.write_text(f"{before}{BEGIN}\n<!-- {day} -->\n\n{made}\n\n{END}{after}")

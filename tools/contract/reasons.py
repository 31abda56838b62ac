"""The table of all reasons in docs/errors.md."""

from __future__ import annotations

from unmask_server.reasons import Meaning, Reason, Retry

BEGIN, END = "<!-- reasons: made by make pages -->", "<!-- end of reasons -->"
_RETRY = {Retry.NO: "no", Retry.AFTER_CHANGE: "after a change", Retry.LATER: "yes, later"}


def with_table(page: str) -> str:
    """A page with the table between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def table() -> str:
    """All reasons by their codes, in the order of the code."""
    codes: dict[str, list[Reason]] = {}
    for reason in Reason:
        codes.setdefault(reason.value.code, []).append(reason)
    lines: list[str] = []
    for code, reasons in codes.items():
        lines += [f"### {code}", "", "| reason | when | what to do | again? | carries |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        lines += [_row(reason.name, reason.value) for reason in reasons]
        lines += [""]
    return "\n".join(lines)


def _row(name: str, meaning: Meaning) -> str:
    keys = ", ".join(f"`{key}`" for key in meaning.metadata)
    carries = [f"metadata {keys}"] if keys else []
    carries = [*meaning.details, *carries]
    return (
        f"| `{name}` | {meaning.when} | {meaning.do} | {_RETRY[meaning.retry]} "
        f"| {', '.join(carries)} |"
    )

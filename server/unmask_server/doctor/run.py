"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from rich.console import Console
from rich.markup import escape

from unmask_server.configuration.loading import Loaded
from unmask_server.doctor import installed, models, settings, store
from unmask_server.doctor.finding import Finding, Level, problem

_MARKS = {
    Level.OK: "[green]✓[/green]",
    Level.WARNING: "[yellow]![/yellow]",
    Level.PROBLEM: "[red]✗[/red]",
}


async def diagnose(loaded: Loaded) -> AsyncIterator[Finding]:
    """Look at everything; nothing is changed."""
    options = loaded.settings
    known = models.registered(options)
    here = [one for one in known if not one.endpoints]
    needed = set()
    if here:
        needed.add("transformers")
    if len(here) < len(known) or options.sglang_launch:
        needed.add("sglang")
    if "oidc" in (options.auth or ()):
        needed.add("oidc")
    weights = sorted((one.weights for one in here), reverse=True)[: options.max_engines]
    bytes_each = 1.0 if options.dtype == "float32" else 0.5
    holds = int(sum(weights) * bytes_each) + options.answer_cache_mib * 2**20
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("unmask", installed.program),
        ("extras", lambda: installed.extras(needed)),
        ("settings", lambda: settings.sources(loaded)),
        ("database", lambda: store.database(options)),
        ("listen", lambda: settings.listening(options)),
        ("model", lambda: models.directories(known)),
        ("sglang_launch", lambda: models.launches(options)),
        ("open files", installed.files),
        ("memory", lambda: installed.memory(holds)),
        ("device", lambda: installed.device(options.device) if here else iter(())),
    )
    for name, check in checks:
        try:
            for finding in check():
                yield finding
        except Exception as error:
            yield _failed(name, error)
    try:
        async for finding in models.endpoints(options, known):
            yield finding
    except Exception as error:
        yield _failed("sglang", error)


def show(finding: Finding, console: Console) -> None:
    """One line, and one more for what to do."""
    subject, found = escape(f"{finding.subject:<13}"), escape(finding.found)
    console.print(f"{_MARKS[finding.level]} [bold]{subject}[/bold] {found}", soft_wrap=True)
    if finding.todo:
        console.print(f"{'':16}→ {escape(finding.todo)}", soft_wrap=True)


def _failed(name: str, error: Exception) -> Finding:
    said = " ".join(str(error).split()) or type(error).__name__
    return problem(name, f"could not be looked at: {said}", "see the message")

"""Every setting as a flag of a command."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from unmask_server.config import Settings
from unmask_server.configuration.groups import group_of
from unmask_server.configuration.loading import Loaded, flag, load
from unmask_server.configuration.show import shown

Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings in TOML (UNMASK_CONFIG; else the first of "
        "~/.config/unmask/server.toml, /etc/unmask/server.toml that is there; empty: none).",
    ),
]


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config` and a flag for each setting, and the settings as first argument.

    Flags are read by the settings' own types, so a value is refused in the same words wherever it
    stands.
    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        flags = {name: options.pop(name) for name in Settings.model_fields}
        # Lists are empty where nothing was given; one item may be several, as in the environment.
        given = {
            name: value[0] if isinstance(value, list) and len(value) == 1 else value
            for name, value in flags.items()
            if value not in (None, [], ())
        }
        command(functools.partial(load, given, options.pop("config")), **options)

    hints = get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    parameters = [
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
    ]
    for name in Settings.model_fields:
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name)
            )
        )
    parameters += [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


Load = Callable[[], Loaded]
"""What `configured` hands to a command: to be called where errors are told in one line."""


def _option(name: str) -> Any:
    field = Settings.model_fields[name]
    kind, metavar = _kind(field.annotation)
    default = shown(name, field.get_default(call_default_factory=True))
    spelled = f"{flag(name)}/--no-{name.replace('_', '-')}" if kind is bool else flag(name)
    option = typer.Option(
        spelled,
        metavar=None if kind is bool else metavar,
        help=f"{field.description} [dim]Default: {escape(default)}.[/dim]"
        if default
        else field.description,
        show_default=False,
        rich_help_panel=group_of(name),
    )
    return Annotated[kind | None, option]


def _kind(annotation: Any) -> tuple[Any, str]:
    """What the command line takes for a type, and how it is called there."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _kind(next(kind for kind in get_args(annotation) if kind is not type(None)))
    if get_origin(annotation) is Literal:
        return str, "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (list, tuple):
        return list[str], "TEXT"
    if annotation is bool:
        return bool, ""
    return str, {int: "INTEGER", float: "NUMBER"}.get(annotation, "TEXT")

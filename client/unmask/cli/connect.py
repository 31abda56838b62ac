"""What all commands share: how they find their server, and how they fail."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, NoReturn, ParamSpec, get_type_hints

import grpc
import typer
from rich.console import Console

from unmask.channel import DEFAULT_ADDRESS, read_token
from unmask.client import Client
from unmask.embedded import DEFAULT_DATABASE, local
from unmask.errors import UnavailableError, UnmaskError

P = ParamSpec("P")

USAGE_ERROR = 2
"""Exit status of everything that the user can put right."""
INTERRUPTED = 130

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="UNMASK_ADDRESS",
        metavar="ADDRESS",
        help="A running server: HOST:PORT or unix:PATH.",
        rich_help_panel="Connection",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="PATH",
        help="Without a server: start the embedded one on this SQLite file or database URL "
        "($UNMASK_DEVICE, $UNMASK_DTYPE and $UNMASK_THREADS are for it). "
        f"The default is {DEFAULT_DATABASE}, if there is one, else the server at "
        f"{DEFAULT_ADDRESS}.",
        rich_help_panel="Connection",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="PATH",
        help="A file with the bearer token; default: $UNMASK_TOKEN, or $UNMASK_TOKEN_FILE's file. "
        "No flag takes the token itself: others on the machine can see flags.",
        rich_help_panel="Connection",
    ),
]
Tls = Annotated[bool, typer.Option("--tls", help="Connect with TLS.", rich_help_panel="Connection")]


def _pem(name: str, text: str) -> Any:
    option = typer.Option(
        f"--tls-{name}",
        envvar=f"UNMASK_TLS_{name.upper()}",
        metavar="PEM",
        help=text,
        rich_help_panel="Connection",
    )
    return Annotated[Path | None, option]


_CONNECTION: dict[str, tuple[Any, Any]] = {
    "server": (Server, None),
    "database": (Database, None),
    "token_file": (TokenFile, None),
    "tls": (Tls, False),
    "tls_ca": (_pem("ca", "Connect with TLS, trusting these certificate authorities."), None),
    "tls_cert": (_pem("cert", "The client's own certificate, where the server asks for it."), None),
    "tls_key": (_pem("key", "Its private key."), None),
}


def connected(
    command: Callable[Concatenate[Client, P], None], *, embedded: bool = False
) -> Callable[..., None]:
    """Give a command the options of the connection, a client as its first argument, and errors of
    one line.

    Args:
        command: its first parameter is the client, the others are typer's.
        embedded: whether it runs on the embedded server unless it is told otherwise.

    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        where = {name: options.pop(name) for name in _CONNECTION}
        try:
            with connect(**where, embedded=embedded) as client:
                command(client, **options)  # type: ignore[call-arg]
        except typer.Exit:  # a RuntimeError, for historical reasons
            raise
        except UnavailableError as error:
            fail(_unavailable(error, client.address))
        except UnmaskError as error:
            fail(_one_line(error))
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except (ValueError, ImportError, RuntimeError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            say("interrupted; what was sampled is kept")
            raise typer.Exit(INTERRUPTED) from None

    hints = get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    parameters = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own
    ] + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _CONNECTION.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def connect(
    server: str | None,
    database: str | None,
    token_file: Path | None,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    *,
    embedded: bool,
) -> Client:
    """The client that the options of the connection ask for.

    It waits as long as it takes: who watches can press Ctrl-C.
    """
    if server and database:
        raise ValueError("--database: not together with --server (or $UNMASK_ADDRESS)")
    if not server and (database or embedded or DEFAULT_DATABASE.exists()):
        return local(database, timeout=None)
    token = None
    if token_file:
        token = functools.partial(read_token, token_file)
        token()  # a file that cannot be read is told at once
    return Client(
        server or DEFAULT_ADDRESS,
        token=token,
        tls=tls or None,
        ca=tls_ca,
        cert=tls_cert,
        key=tls_key,
        timeout=None,
    )


def stdout() -> Console:
    """Where results go. Colours are off where they would be noise: pipes, NO_COLOR, TERM=dumb."""
    return Console(highlight=False, soft_wrap=False)


def stderr() -> Console:
    """Where everything else goes."""
    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """A remark on stderr."""
    typer.echo(message, err=True)


def fail(message: str) -> NoReturn:
    """One readable line on stderr, and exit status 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(USAGE_ERROR)


def model_argument(model: str) -> str:
    """A model as the server is to read it.

    A directory that exists here is given by its absolute path: a server on this machine may run in
    another folder. Anything else is the server's to understand.
    """
    path = Path(model)
    return str(path.absolute()) if path.is_dir() else model


def _unavailable(error: UnavailableError, address: str) -> str:
    if error.message.startswith("failed to connect"):  # gRPC's own words, with its own addresses
        return f"no server answers at {address}; is it running? --database starts one"
    return f"{_one_line(error)} (server: {address})"


def _one_line(error: UnmaskError) -> str:
    text = error.message
    for violation in error.violations:
        if violation.field not in text:
            text += f"; {violation.field}: {violation.description}"
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        text = f"{error.code().name}: {text}"
    return " ".join(text.split())

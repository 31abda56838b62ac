"""Models that SGLang servers run: checked when they are registered."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from unmask_server.access.sources import Sources
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.model_files import ModelFiles, first_rows
from unmask_server.catalog.tokenizer import ModelTokenizer
from unmask_server.reasons import Reason

if TYPE_CHECKING:
    from unmask_server.engines.sglang import Serving

MAX_ENDPOINTS = 64
DEFAULT_VERSION = "default"
"""SGLang's name for weights that nobody has updated."""
_TEXTS = ("What is 12 * 345.6?", "So x = \\frac{1}{2}.\n\n#### 7", "naïve café, 你好 🙂", "a\tb  c")
"""What two tokenizers are compared on; ids are what is sent, so this is about the model alone."""
_COMPARED = 64
"""Numbers of a parameter that are compared with a server's."""


def check_endpoints(endpoints: Sequence[str], sources: Sources) -> tuple[str, ...]:
    """Addresses of servers, without trailing slashes.

    Raises:
        InvalidArgument: one is no http or https address, has a user in it, or is named twice.
        SourceNotAllowed: this server may not call one.

    """
    if len(endpoints) > MAX_ENDPOINTS:
        raise InvalidArgument("endpoints", f"{len(endpoints)} are more than {MAX_ENDPOINTS}")
    found: list[str] = []
    for i, endpoint in enumerate(endpoints):
        try:
            parts = urlsplit(endpoint)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
            valid = valid and not (parts.query or parts.fragment)
            _ = parts.port
        except ValueError:
            valid = False
        if not valid:
            raise InvalidArgument(
                f"endpoints[{i}]", f"{endpoint[:200]!r} is no address like http://host:30000"
            )
        if "@" in parts.netloc:
            # It would be stored, shown and logged.
            raise InvalidArgument(f"endpoints[{i}]", "has a user or password in it; give none")
        url = endpoint.rstrip("/")
        if url in found:
            raise InvalidArgument(f"endpoints[{i}]", f"{url} is named twice")
        sources.endpoint(url, f"endpoints[{i}]")
        found.append(url)
    return tuple(found)


def served_folder(endpoints: Sequence[str], sources: Sources) -> str:
    """The directory that holds the tokenizer of a server's model, where it can be read here.

    Raises:
        InvalidArgument: it cannot.
        SourceNotAllowed: the server names a directory outside of the model roots.
        EngineError: the server does not answer.

    """
    sglang = _engine()
    try:
        info = asyncio.run(sglang.server_info(endpoints[0], may_call=sources.may_call(endpoints)))
    except sglang.MismatchError as error:
        raise FailedPrecondition(Reason.SERVED_MODEL_DIFFERS, str(error)) from None
    folder: str = info.tokenizer_path or info.model_path
    if not (sources.folder(folder, "model") / "config.json").is_file():
        raise InvalidArgument(
            "model",
            f"{endpoints[0]} serves {folder}, which is no directory here; give one with its "
            "config.json and tokenizer (weights are not needed)",
        )
    return folder


def look_at(
    endpoints: Sequence[str], files: ModelFiles, tokenizer: ModelTokenizer, sources: Sources
) -> Serving:
    """Inspect the servers of a model, and compare them with its files.

    Args:
        endpoints: their addresses.
        files: the model, as far as it is here.
        tokenizer: the model's, from its files.
        sources: says to which addresses connections may be opened.

    Raises:
        FailedPrecondition: they run another model.
        EngineError: one does not answer.

    """
    sglang = _engine()
    columns = files.vocab_size
    may_call = sources.may_call(endpoints)
    try:
        serving: Serving = asyncio.run(
            sglang.inspect(
                endpoints,
                columns=columns,
                usable=min(tokenizer.limit, columns),
                may_call=may_call,
            )
        )
    except sglang.MismatchError as error:
        raise FailedPrecondition(Reason.SERVED_MODEL_DIFFERS, str(error)) from None
    told = asyncio.run(sglang.served_tokens(endpoints[0], _TEXTS, may_call=may_call))
    for text, ids in zip(_TEXTS, told, strict=True):
        mine = list(tokenizer.encode(text))
        if ids is not None and ids != mine:
            # Only ids are sent, and SGLang may load a tokenizer in a way of its own.
            remark = (
                f"{endpoints[0]} has another tokenizer than {files.folder}: {text!r} is {ids} "
                f"there and {mine} here; make sure that it serves this model"
            )
            serving = replace(serving, remarks=(remark,))
            break
    ours = first_rows(files, _COMPARED)
    if ours is not None:
        name, values = ours
        theirs = asyncio.run(
            sglang.served_weights(endpoints[0], name, len(values), may_call=may_call)
        )
        if theirs is not None and not sglang.same_parameters(values, theirs):
            raise FailedPrecondition(
                Reason.SERVED_MODEL_DIFFERS,
                f"{endpoints[0]} serves other weights than {files.folder} holds ({name} differs)",
            )
    return serving


def served_fingerprint(base: str, files: ModelFiles, serving: Serving) -> str:
    """A model's fingerprint, given that of its files.

    Weights that are here are the model's identity; without them it is what the servers call them.
    Weights that were updated under a name of their own are another model in any case.
    """
    if files.weights and serving.weight_version == DEFAULT_VERSION:
        return base
    digest = hashlib.blake2b(base.encode(), digest_size=16)
    digest.update(f"|{serving.weight_version}".encode())
    if not files.weights:
        digest.update(f"|{serving.served_name}|{serving.model_path}".encode())
    return digest.hexdigest()


def _engine() -> ModuleType:
    try:
        from unmask_server.engines import sglang
    except ImportError as error:
        raise FailedPrecondition(
            Reason.LIBRARY_MISSING,
            f"models on SGLang need the extra: pip install 'unmask[sglang]' ({error.name} lacks)",
            extra="sglang",
        ) from None
    return sglang

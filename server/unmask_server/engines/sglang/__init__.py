"""Models that SGLang servers run, over HTTP."""

from unmask_server.engines.sglang.engine import SglangEngine
from unmask_server.engines.sglang.inspection import (
    MismatchError,
    Serving,
    inspect,
    same_parameters,
    served_tokens,
    served_weights,
    server_info,
)

__all__ = [
    "MismatchError",
    "Serving",
    "SglangEngine",
    "inspect",
    "same_parameters",
    "served_tokens",
    "served_weights",
    "server_info",
]

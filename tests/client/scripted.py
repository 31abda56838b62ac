"""A server whose answers are written down in the test: for what the client itself does.

Nothing here says anything about the real server; tests/e2e runs against that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

FILES = (catalog_pb2, trajectory_pb2, diagnosis_pb2, growth_pb2, cache_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every method of the contract, by path."""

Answer = Callable[[Any, grpc.ServicerContext], Any]


class ScriptedServer(grpc.GenericRpcHandler):
    """Answers calls by method name, and remembers what it was sent."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:{folder}/scripted.sock"
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), handlers=[self])
        self._server.add_insecure_port(self.address)
        self._server.start()

    def answer(self, method: str, answer: Any) -> None:
        """What `method` answers: a message, a list of messages (a stream), or a function."""
        self.answers[method] = answer if callable(answer) else lambda request, context: answer

    def requests(self, method: str) -> list[Any]:
        """The requests of `method` so far."""
        return [request for name, request in self.seen if name == method]

    def close(self) -> None:
        """Stop at once."""
        self._server.stop(None).wait()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """gRPC asks for the handler of a call."""
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
        method = METHODS.get(details.method)
        if method is None:
            return None
        self.metadata.append(dict(details.invocation_metadata))

        def run(request: Any, context: grpc.ServicerContext) -> Any:
            self.seen.append((method.name, request))
            if method.name not in self.answers:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method.name} is not scripted")
            return self.answers[method.name](request, context)

        def run_stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            yield from run(request, context)

        deserializer = GetMessageClass(method.input_type).FromString
        serializer = GetMessageClass(method.output_type).SerializeToString
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(run_stream, deserializer, serializer)
        return grpc.unary_unary_rpc_method_handler(run, deserializer, serializer)

"""Server reflection, as `v1alpha` and as `v1`.

The library has v1alpha only; v1 is the same under another package, message for message, so the same
servicer speaks both.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

ALPHA = reflection.SERVICE_NAME
V1 = "grpc.reflection.v1.ServerReflection"
_METHOD = "ServerReflectionInfo"


def add_reflection(
    services: Sequence[str], server: grpc.aio.Server, pool: descriptor_pool.DescriptorPool
) -> None:
    """Serve the descriptions of these services, and of reflection itself, out of a pool."""
    servicer = reflection.aio.ReflectionServicer((*services, ALPHA, V1), pool)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in (ALPHA, V1):
        handler = grpc.method_handlers_generic_handler(service, {_METHOD: method})
        server.add_generic_rpc_handlers((handler,))


def reflection_files() -> tuple[bytes, bytes]:
    """The files of both versions, serialised; v1's is made of v1alpha's."""
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    v1 = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    return reflection_pb2.DESCRIPTOR.serialized_pb, v1.SerializeToString()

"""`python -m bench.empty_server ADDRESS BYTES`: the ceiling: a method that returns bytes."""

from __future__ import annotations

import asyncio
import sys

import grpc


async def main(address: str, size: int) -> None:
    """Serve until killed."""
    answer = bytes(size)

    async def call(request: bytes, context: object) -> bytes:
        return answer

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(call)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("bench.Empty", {"Call": method})]
    )
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))

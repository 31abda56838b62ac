"""The gRPC services: protobuf in, a domain call, protobuf out."""

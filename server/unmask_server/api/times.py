"""Times as protobuf has them."""

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch, to the microsecond."""
    result = Timestamp()
    result.FromMicroseconds(round(seconds * 1e6))
    return result

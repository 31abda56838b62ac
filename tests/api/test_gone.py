"""Clients that go away in the middle of an answer fill no log."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest
from structlog.testing import capture_logs
from unmask_server.api.errors import _abort


class Gone:
    """A call whose client is gone: nothing can be said to it."""

    async def abort_with_status(self, status: object) -> None:
        raise grpc.aio.UsageError("the call has ended")


@pytest.mark.parametrize("error", [grpc.aio.InternalError("not sent"), grpc.aio.UsageError("over")])
async def test_a_client_that_is_gone_is_no_unforeseen_error(error: Exception) -> None:
    with capture_logs() as said, pytest.raises(type(error)):
        await _abort(cast(Any, Gone()), error, "/unmask.v1.GrowthService/WatchGrowth")
    assert said == []


async def test_what_nobody_foresaw_is_logged() -> None:
    with capture_logs() as said, pytest.raises(grpc.aio.UsageError):
        await _abort(cast(Any, Gone()), ZeroDivisionError(), "/unmask.v1.GrowthService/GetGrowth")
    assert [one["event"] for one in said] == ["unforeseen error"]

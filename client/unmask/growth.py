"""Handles on growths that were started."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import grpc

from unmask.calls import Losses
from unmask.errors import GrowthFailedError, UnavailableError
from unmask.requests.growth import ENDED
from unmask.v1 import growth_pb2 as pb

if TYPE_CHECKING:
    from unmask.aio import AsyncClient
    from unmask.client import Client

GROW = "Start a growth, or find the one of that request_id, and get a handle on it."
"""What `grow` does; the rest of its documentation is that of `start_growth`."""


class _Handle:
    """What is known of a growth."""

    def __init__(self, growth: pb.Growth) -> None:
        self.growth = growth
        """The growth as it was seen last."""

    @property
    def id(self) -> str:
        """Its id."""
        return self.growth.id

    @property
    def ended(self) -> bool:
        """Whether it had ended when it was seen last."""
        return self.growth.state in ENDED

    def _result(self) -> pb.Growth:
        if self.growth.state == pb.GROWTH_STATE_FAILED:
            raise GrowthFailedError(
                grpc.StatusCode.ABORTED, f"growth {self.id} was given up: {self.growth.error}"
            )
        return self.growth


class GrowthHandle(_Handle):
    """A growth that goes on at the server, whatever becomes of this handle."""

    def __init__(self, client: Client, growth: pb.Growth) -> None:
        super().__init__(growth)
        self._client = client

    def watch(self) -> Iterator[pb.Growth]:
        """Progress from now to the end; a stream that breaks is taken up again."""
        losses = Losses()
        while True:
            try:
                for growth in self._client.watch_growth(self.id):
                    losses.progress()
                    self.growth = growth
                    yield growth
            except UnavailableError as error:
                pause = losses.broke(error)
            else:
                return
            time.sleep(pause)

    def wait(self, progress: Callable[[pb.Growth], object] | None = None) -> pb.Growth:
        """Wait for the end; `progress` is called with every state on the way.

        Raises:
            GrowthFailedError: it was given up.

        """
        for growth in self.watch():
            if progress:
                progress(growth)
        return self._result()

    def refresh(self) -> pb.Growth:
        """As it is now."""
        self.growth = self._client.get_growth(self.id)
        return self.growth

    def cancel(self) -> pb.Growth:
        """Stop it, keeping what was sampled. Harmless if it has ended."""
        self.growth = self._client.cancel_growth(self.id)
        return self.growth

    def pause(self) -> pb.Growth:
        """Stop it until it is resumed, keeping what was sampled."""
        self.growth = self._client.pause_growth(self.id)
        return self.growth

    def resume(self) -> pb.Growth:
        """Go on, if it is paused or has failed."""
        self.growth = self._client.resume_growth(self.id)
        return self.growth


class AsyncGrowthHandle(_Handle):
    """The same for asyncio."""

    def __init__(self, client: AsyncClient, growth: pb.Growth) -> None:
        super().__init__(growth)
        self._client = client

    async def watch(self) -> AsyncIterator[pb.Growth]:
        """Progress from now to the end; a stream that breaks is taken up again."""
        losses = Losses()
        while True:
            try:
                async for growth in self._client.watch_growth(self.id):
                    losses.progress()
                    self.growth = growth
                    yield growth
            except UnavailableError as error:
                pause = losses.broke(error)
            else:
                return
            await asyncio.sleep(pause)

    async def wait(self, progress: Callable[[pb.Growth], object] | None = None) -> pb.Growth:
        """Wait for the end; `progress` is called with every state on the way.

        Raises:
            GrowthFailedError: it was given up.

        """
        async for growth in self.watch():
            if progress:
                progress(growth)
        return self._result()

    async def refresh(self) -> pb.Growth:
        """As it is now."""
        self.growth = await self._client.get_growth(self.id)
        return self.growth

    async def cancel(self) -> pb.Growth:
        """Stop it, keeping what was sampled. Harmless if it has ended."""
        self.growth = await self._client.cancel_growth(self.id)
        return self.growth

    async def pause(self) -> pb.Growth:
        """Stop it until it is resumed, keeping what was sampled."""
        self.growth = await self._client.pause_growth(self.id)
        return self.growth

    async def resume(self) -> pb.Growth:
        """Go on, if it is paused or has failed."""
        self.growth = await self._client.resume_growth(self.id)
        return self.growth

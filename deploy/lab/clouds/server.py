"""What all wire front ends share: an HTTP server that delays answers, and drops connections where that is ordered."""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiohttp import web

from tidegate.lab.clouds.refusals import ConnectionDropped
from tidegate.lab.clouds.vpc import VirtualCloud


class FrontEnd(Protocol):
    """A provider's way to ask and answer."""

    cloud: VirtualCloud

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        """Return the answer, refusals in the provider's own form too. Raises `ConnectionDropped`."""


class Server:
    """One front end on one port."""

    def __init__(self, front: FrontEnd) -> None:
        self._front = front
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and return the endpoint."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Listen no longer."""
        if self._runner:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        half = self._front.cloud.rules.latency_s / 2
        await asyncio.sleep(half)
        try:
            answer = self._front.answer(request, body)
        except ConnectionDropped:
            if request.transport:
                request.transport.abort()
            return web.Response()
        await asyncio.sleep(half)
        return answer

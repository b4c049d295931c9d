"""EC2 before a virtual cloud: a server that speaks its Query protocol to the real SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from aiohttp import web

from tidegate.lab.clouds import aws_wire as wire
from tidegate.lab.clouds.aws_actions import ACTIONS
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.refusals import ConnectionDropped, RawRefused, Refused
from tidegate.lab.clouds.vpc import VirtualCloud


class Ec2:
    """One account and region. `secrets` are those of its access keys; `now` tells the time that requests are signed with."""

    def __init__(
        self, cloud: VirtualCloud, region: str, secrets: Mapping[str, str], now: Callable[[], float] = time.time
    ) -> None:
        self.cloud, self.region, self._secrets, self._now = cloud, region, secrets, now
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and return the endpoint."""
        app = web.Application()
        app.router.add_route("*", "/", self._serve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Listen no longer."""
        if self._runner:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        half = self.cloud.rules.latency_s / 2
        await asyncio.sleep(half)
        try:
            text, status = self._answer(request, body), 200
        except Refused as refused:
            status, code = wire.CODES[refused.why]
            text = wire.refusal(code, refused.message)
        except RawRefused as refused:
            status, text = refused.status, wire.refusal(refused.code, refused.message)
        except ConnectionDropped:
            if request.transport:
                request.transport.abort()
            return web.Response()
        await asyncio.sleep(half)
        return web.Response(text=text, status=status, content_type="text/xml")

    def _answer(self, request: web.Request, body: bytes) -> str:
        wire.check(
            request.method,
            request.raw_path,
            request.headers,
            body,
            self._secrets,
            self.region,
            self._now() + self.cloud.gate.skew_s,
        )
        parameters = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = parameters.get("Action", "")
        if action not in ACTIONS or parameters.get("Version") != wire.VERSION:
            raise RawRefused(400, "InvalidAction", f"{action} of version {parameters.get('Version')}")
        verb, effect = ACTIONS[action]
        of = parameters.get("NetworkInterfaceId") or parameters.get("InstanceId", "")
        return wire.answer(action, self.cloud.gate.serve(Call(verb, action, of), lambda: effect(self.cloud, parameters)))

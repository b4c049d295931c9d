"""EC2 before a virtual cloud: a server that speaks its Query protocol to the real SDK."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from aiohttp import web

from tidegate.lab.clouds import aws_wire as wire
from tidegate.lab.clouds.aws_actions import ACTIONS, linked
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.refusals import RawRefused, Refused
from tidegate.lab.clouds.vpc import VirtualCloud


class Ec2:
    """One account and region.

    `secrets` are those of its access keys, `now` tells the time that requests are signed with, and `linked` are the actions that
    were needed besides those of the requests themselves.
    """

    def __init__(
        self, cloud: VirtualCloud, region: str, secrets: Mapping[str, str], now: Callable[[], float] = time.time
    ) -> None:
        self.cloud, self.region, self._secrets, self._now = cloud, region, secrets, now
        self.linked: set[str] = set()

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        """Return the answer to one request."""
        try:
            text, status = self._carry_out(request, body), 200
        except Refused as refused:
            status, code = wire.CODES[refused.why]
            text = wire.refusal(code, refused.message)
        except RawRefused as refused:
            status, text = refused.status, wire.refusal(refused.code, refused.message)
        return web.Response(text=text, status=status, content_type="text/xml")

    def _carry_out(self, request: web.Request, body: bytes) -> str:
        now_s = self._now() + self.cloud.gate.skew_s
        wire.check(request.method, request.raw_path, request.headers, body, self._secrets, self.region, now_s)
        asked = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = asked.get("Action", "")
        if action not in ACTIONS or asked.get("Version") != wire.VERSION:
            raise RawRefused(400, "InvalidAction", f"{action} of version {asked.get('Version')}")
        for needed in linked(asked):
            self.linked.add(needed)
            if needed in self.cloud.gate.denied:
                raise RawRefused(403, "UnauthorizedOperation", f"not authorized: {needed}")
        verb, effect = ACTIONS[action]
        of = asked.get("NetworkInterfaceId") or asked.get("InstanceId", "")
        return wire.answer(action, self.cloud.gate.serve(Call(verb, action, of), lambda: effect(self.cloud, asked)))

"""Azure Resource Manager before a virtual cloud: a server that speaks its REST to the real SDK.

Errors: https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors; a locked resource
answers 429, too: https://learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling. Long changes
are operations: https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations. For an interface with too
many IP configurations the documentation names no code; the one of a scale set is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from tidegate.ipam.cloud import Verb
from tidegate.lab.clouds.azure_actions import Actions, Asked
from tidegate.lab.clouds.azure_shapes import Json
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.records import Operation
from tidegate.lab.clouds.refusals import RawRefused, Refusal, Refused
from tidegate.lab.clouds.vpc import VirtualCloud

CODES: Mapping[Refusal, tuple[int, str]] = {
    Refusal.THROTTLED: (429, "TooManyRequests"),
    Refusal.SUBNET_FULL: (400, "SubnetIsFull"),
    Refusal.FRAGMENTED: (400, "SubnetIsFull"),
    Refusal.ADDRESS_LIMIT: (400, "SecondaryIpConfigurationCountPerVMSSVMExceeded"),
    Refusal.NO_INTERFACE: (404, "ResourceNotFound"),
    Refusal.NO_INSTANCE: (404, "ResourceNotFound"),
    Refusal.NO_SUBNET: (400, "InvalidResourceReference"),
    Refusal.CONFLICT: (412, "PreconditionFailed"),
    Refusal.BUSY: (429, "RetryableErrorDueToAnotherOperation"),
    Refusal.DENIED: (403, "AuthorizationFailed"),
    Refusal.SIGNATURE: (401, "InvalidAuthenticationToken"),
    Refusal.SKEWED: (401, "ExpiredAuthenticationToken"),
    Refusal.SERVER: (500, "InternalServerError"),
}
"""Other refusals answer 400 `BadRequest`."""

POLL_MS = 50

Change = Callable[[Asked], tuple[Json, Operation]]


class Arm:
    """One subscription and region. `tokens` are the bearer tokens that are good, `linked` what was needed besides."""

    def __init__(self, cloud: VirtualCloud, subscription: str, region: str, tokens: Sequence[str]) -> None:
        self.cloud, self.tokens = cloud, tokens
        self.actions = Actions(cloud, subscription, region)
        self.linked: set[str] = set()
        self._root = f"/subscriptions/{subscription}".lower()

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        """Return the answer to one request."""
        try:
            return self._carry_out(request, body)
        except Refused as refused:
            status, code = CODES.get(refused.why, (400, "BadRequest"))
            return _refusal(status, code, refused.message, refused.retry_s)
        except RawRefused as refused:
            return _refusal(refused.status, refused.code, refused.message, refused.retry_s)

    def _carry_out(self, request: web.Request, body: bytes) -> web.Response:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            raise Refused(Refusal.SIGNATURE, "The access token is invalid.")
        if "api-version" not in request.query:
            raise RawRefused(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        path = request.path.lower()
        if not path.startswith(f"{self._root}/"):
            raise RawRefused(404, "SubscriptionNotFound", "The subscription could not be found.")
        asked = Asked(
            request.method,
            path.removeprefix(self._root),
            request.query,
            json.loads(body) if body else None,
            request.headers.get("If-Match", ""),
        )
        gate = self.cloud.gate
        if listed := self.actions.find_list(asked):
            action, read_all = listed
            return self._page(request, gate.serve(Call(Verb.DESCRIBE, action), lambda: read_all(asked)))
        if one := self.actions.find_object(asked):
            action, read = one
            return web.json_response(
                gate.serve(Call(Verb.DESCRIBE, action, asked.path), lambda: read(asked)),
                headers={"x-ms-retry-after-ms": str(POLL_MS)},
            )
        if changing := self.actions.find_change(asked):
            action, change = changing
            return self._change(asked, action, change, str(request.url.origin()))
        raise RawRefused(404, "InvalidResourceType", f"{request.method} {asked.path} is not known here.")

    def _change(self, asked: Asked, action: str, change: Change, origin: str) -> web.Response:
        for needed in self.actions.linked(asked):
            self.linked.add(needed)
            if needed in self.cloud.gate.denied:
                raise RawRefused(403, "LinkedAuthorizationFailed", f"The client may not perform {needed}.")
        verb = Verb.ASSIGN if self.actions.adds(asked) else Verb.UNASSIGN
        what, operation = self.cloud.gate.serve(Call(verb, action, asked.path), lambda: change(asked))
        at = f"{origin}{self._root}/providers/Microsoft.Network/locations/{self.actions.region}/operations/{operation.id}"
        headers = {"Azure-AsyncOperation": f"{at}?api-version=1", "x-ms-retry-after-ms": str(POLL_MS)}
        return web.json_response(what, headers=headers)

    def _page(self, request: web.Request, items: Sequence[Json]) -> web.Response:
        begin = int(request.query.get("$skiptoken", "0"))
        end = begin + self.cloud.rules.page
        page: dict[str, object] = {"value": items[begin:end]}
        if end < len(items):
            page["nextLink"] = str(request.url.update_query({"$skiptoken": str(end)}))
        return web.json_response(page)


def _refusal(status: int, code: str, message: str, retry_s: float) -> web.Response:
    headers = {"Retry-After": str(max(1, round(retry_s)))} if retry_s else {}
    return web.json_response({"error": {"code": code, "message": message}}, status=status, headers=headers)

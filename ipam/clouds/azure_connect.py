"""How Azure is reached: credentials, clients without retries, and the account's pace before every request, page and poll."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Self, TypeVar

import aiohttp

from tidegate.crds.meta import Model
from tidegate.ipam.cloud import CloudError, Pace, Purpose, Trouble, Verb
from tidegate.ipam.clouds.azure_answers import Answer, translate

T = TypeVar("T")

POLL_S = 2.0
"""Between two looks at an operation whose answer does not say how long to wait."""

CONNECT_S, ANSWER_S = 5.0, 60.0

_ERRAND: ContextVar[tuple[Verb, Purpose]] = ContextVar("_ERRAND")
"""For what the running task sends requests: the SDK sends several where we call it once."""


class Keys(Model):
    """What a Secret holds for Azure; empty ones are looked for in the environment by azure-identity."""

    subscriptionID: str
    tenantID: str = ""
    clientID: str = ""
    clientSecret: str = ""

    @classmethod
    def read(cls, keys: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Self:
        """Read a Secret's keys. Raises `CloudError` without a subscription."""
        known = {name: keys[name] for name in cls.__struct_fields__ if name in keys}
        known.setdefault("subscriptionID", environment.get("AZURE_SUBSCRIPTION_ID", ""))
        if not known["subscriptionID"]:
            raise CloudError(
                Trouble.DENIED, "", "no subscription: put subscriptionID into the Secret, or set AZURE_SUBSCRIPTION_ID"
            )
        return cls(**known)


class Connection:
    """Clients of one subscription. `network` and `compute` are the SDK's."""

    def __init__(self, network: Any, compute: Any, credential: Any, pace: Pace) -> None:
        self.network, self.compute = network, compute
        self._credential, self._pace = credential, pace

    async def close(self) -> None:
        """Close all connections."""
        for each in (self.network, self.compute, self._credential):
            await each.close()

    async def send(self, verb: Verb, purpose: Purpose, call: Callable[[], Awaitable[T]]) -> T:
        """Call the SDK for one errand. Raises `CloudError`, and tells the pace when the rate was the reason."""
        from azure.core.exceptions import AzureError

        errand = _ERRAND.set((verb, purpose))
        try:
            return await call()
        except AzureError as failure:
            error = translate(failure)
            reading = verb is Verb.DESCRIBE or _method(failure) == "GET"
            if error.trouble is Trouble.THROTTLED:
                self._pace.throttled(Verb.DESCRIBE if reading else verb, error.retry_s)
            # What a look at an operation says, or that there was none, leaves open what became of it.
            error.done = verb is not Verb.DESCRIBE and (error.done or reading)
            raise error from failure
        finally:
            _ERRAND.reset(errand)

    async def get(self, purpose: Purpose, call: Callable[[], Awaitable[Any]]) -> Answer:
        """Return one object as it is on the wire."""
        found: Answer = (await self.send(Verb.DESCRIBE, purpose, call)).as_dict()
        return found

    async def all(self, purpose: Purpose, listing: Callable[[], AsyncIterable[Any]]) -> list[Answer]:
        """Return all pages of a list as it is on the wire."""

        async def read() -> list[Answer]:
            return [each.as_dict() async for each in listing()]

        return await self.send(Verb.DESCRIBE, purpose, read)


def _method(failure: Any) -> str:
    request = getattr(getattr(failure, "response", None), "request", None)
    return str(getattr(request, "method", ""))


async def connect(pace: Pace, keys: Keys, endpoint: str, credential: Any) -> Connection:
    """Make the clients; nothing is sent yet. `endpoint` is another place than Azure's public cloud.

    An endpoint without TLS must be on this machine: tokens travel to it. Raises `CloudError` or ValueError.
    """
    if endpoint.startswith("http://") and not endpoint.startswith(("http://127.0.0.1:", "http://[::1]:", "http://localhost:")):
        raise ValueError(f"{endpoint}: only an endpoint on this machine may do without TLS")
    try:
        # Importing the SDK takes five seconds.
        network, compute = await asyncio.to_thread(_load)
    except ImportError as error:
        raise CloudError(Trouble.UNSUPPORTED, "", f"install tidegate[azure]: {error}") from error
    who = credential or credential_of(keys)
    network, compute = (make(who, keys.subscriptionID, **_options(pace, endpoint)) for make in (network, compute))
    return Connection(network, compute, who, pace)


def _load() -> tuple[Any, Any]:
    from azure.mgmt.compute.aio import ComputeManagementClient
    from azure.mgmt.network.aio import NetworkManagementClient

    return NetworkManagementClient, ComputeManagementClient


def _options(pace: Pace, endpoint: str) -> dict[str, Any]:
    from azure.core.pipeline.policies import AsyncHTTPPolicy
    from azure.core.pipeline.transport import AioHttpTransport

    class Paced(AsyncHTTPPolicy):  # type: ignore[misc]
        """Waits for the pace; requests that read are describes, whatever they are for."""

        async def send(self, request: Any) -> Any:
            verb, purpose = _ERRAND.get()
            await pace.wait(Verb.DESCRIBE if request.http_request.method == "GET" else verb, purpose)
            if endpoint.startswith("http://"):
                request.context.options["enforce_https"] = False
            return await self.next.send(request)

    session = aiohttp.ClientSession(
        middlewares=(_send_once,), trust_env=True, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )
    options = {
        "transport": AioHttpTransport(session=session, connection_timeout=CONNECT_S, read_timeout=ANSWER_S),
        "per_call_policies": [Paced()],
        "retry_total": 0,
        "polling_interval": POLL_S,
    }
    if endpoint:
        options |= {"base_url": endpoint, "credential_scopes": [f"{endpoint}/.default"]}
    return options


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a PUT again by itself when its connection broke: the first may have taken effect."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientError(str(error)) from error


def credential_of(keys: Keys) -> Any:
    """Return a credential of the SDK's: the service principal of the keys, or else what the machine and the environment give."""
    from azure.identity import aio

    if keys.clientSecret:
        return aio.ClientSecretCredential(keys.tenantID, keys.clientID, keys.clientSecret)
    return aio.DefaultAzureCredential(
        managed_identity_client_id=keys.clientID or None,
        exclude_cli_credential=True,
        exclude_developer_cli_credential=True,
        exclude_powershell_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_shared_token_cache_credential=True,
    )

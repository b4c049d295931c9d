"""The one door to the API server: requests on raw JSON bytes, and errors that tell refusal from silence."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, Self

import aiohttp
import msgspec

from tidegate.kube import credentials

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
REQUEST_TIMEOUT_S = 30.0

Body = Mapping[str, Any] | msgspec.Struct | bytes
"""An object to send: a mapping, a model, or JSON that is encoded already."""


class ApiError(Exception):
    """The API server answered, and said no: `status` is the HTTP code, `reason` the API's word (`Conflict`)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class Unreachable(ConnectionError):
    """No answer came. `kind` says how far we got; after `closed` and `timeout` the server may have done the work."""

    def __init__(self, kind: Literal["refused", "tls", "timeout", "closed"], message: str) -> None:
        super().__init__(f"API server unreachable ({kind}): {message}")
        self.kind = kind


class _Status(msgspec.Struct):
    reason: str = ""
    message: str = ""


class Client:
    """Requests to one API server. Every method raises ApiError or Unreachable and nothing else."""

    def __init__(
        self, session: aiohttp.ClientSession, server: str, authorize: Callable[[], Awaitable[Mapping[str, str]]]
    ) -> None:
        """Speak to `server` over `session`; `authorize` gives the headers that say who we are."""
        self._session, self._server, self._authorize = session, server.rstrip("/"), authorize

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, path: str) -> bytes:
        """Return one object."""
        return await self._send("GET", path)

    async def list(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """Return a list; `query` takes `labelSelector`, `fieldSelector`, `limit` and `continue`."""
        return await self._send("GET", path, query)

    async def create(self, path: str, body: Body) -> bytes:
        """Create an object in the collection `path`; ApiError 409 `AlreadyExists` when it is there."""
        return await self._send("POST", path, None, body)

    async def replace(self, path: str, body: Body) -> bytes:
        """Replace a whole object; ApiError 409 `Conflict` when `metadata.resourceVersion` is not the current one."""
        return await self._send("PUT", path, None, body)

    async def merge(self, path: str, body: Body) -> bytes:
        """Change the given fields of an object that exists."""
        return await self._send("PATCH", path, None, body, MERGE_PATCH)

    async def delete(self, path: str) -> None:
        """Delete an object; already gone is a success."""
        try:
            await self._send("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    async def apply(self, path: str, body: Body, field_manager: str, force: bool = True) -> bytes:
        """Server-side apply: create or change, owning exactly the fields given."""
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._send("PATCH", path, query, body, APPLY_PATCH)

    async def patch_status(self, path: str, body: Body, field_manager: str) -> bytes:
        """Server-side apply of the status of an object; ApiError 404 when it does not exist.

        The server creates nothing on a status path, so a late receipt cannot bring a deleted object back.
        """
        return await self.apply(f"{path}/status", body, field_manager)

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str], silence_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch and yield its chunks as they arrive; Unreachable `timeout` after `silence_s` without any."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=silence_s)
        with _translated():
            async with self._session.get(
                self._server + path, params=dict(query), headers=await self._authorize(), timeout=timeout
            ) as response:
                await _check(response)
                yield response.content.iter_any()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        headers = dict(await self._authorize())
        payload: bytes | None = None
        if body is not None:
            payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
            headers["Content-Type"] = content_type
        with _translated():
            async with self._session.request(
                method,
                self._server + path,
                params=dict(query or {}),
                data=payload,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            ) as response:
                await _check(response)
                return await response.read()


class _translated:  # noqa: N801 (used as a statement)
    """Turns the errors of aiohttp into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        match error:
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
                raise Unreachable("tls", str(error)) from error
            case aiohttp.ClientConnectorError():
                raise Unreachable("refused", str(error)) from error
            case TimeoutError() | asyncio.TimeoutError():
                raise Unreachable("timeout", str(error) or "no answer in time") from error
            case aiohttp.ClientError() | ConnectionResetError():
                raise Unreachable("closed", str(error) or type(error).__name__) from error


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.read()
    try:
        status = msgspec.json.decode(text, type=_Status)
    except msgspec.DecodeError:
        status = _Status(message=text[:200].decode(errors="replace"))
    raise ApiError(response.status, status.reason or response.reason or "", status.message)


async def connect(kubeconfig: str | None) -> Client:
    """Open a lean client, by `kubeconfig` or as the pod that we run in. Raises CredentialsError."""
    known = credentials.load(kubeconfig)

    async def authorize() -> Mapping[str, str]:
        return known.headers()

    connector = aiohttp.TCPConnector(ssl=known.tls if known.tls is not None else True)
    return Client(aiohttp.ClientSession(connector=connector), known.server, authorize)

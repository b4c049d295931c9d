"""The agent's end of the CNI plugin: a unix socket for root alone, one request a connection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import structlog
from prometheus_client import Histogram

from tidegate.datapath import rootsocket
from tidegate.datapath.cni import spec
from tidegate.datapath.cni.spec import CniError, Code, Request, Result

log = structlog.get_logger()

REQUESTS = Histogram(
    "tidegate_cni_request_seconds",
    "Time from a CNI request to its answer, by command.",
    ["command"],
    buckets=[number / 1000 for number in (2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 1000, 5000)],
)

_MAX_BYTES = 1 << 20
_READ_S = 10.0


class Sandboxes(Protocol):
    """What the verbs of CNI do. All are idempotent and raise `CniError`."""

    async def add(self, request: Request) -> Result:
        """Connect a pod; return once its first packet would be treated as its policies say."""

    async def delete(self, request: Request) -> None:
        """Disconnect a pod; whatever is gone already is a success."""

    async def check(self, request: Request) -> None:
        """Raise if a pod's network is not what ADD made."""

    async def gc(self, request: Request) -> None:
        """Remove what belongs to no valid attachment."""

    async def status(self) -> None:
        """Raise if ADD could not succeed now."""


async def serve(path: Path, pods: Sandboxes) -> None:
    """Serve until cancelled. Raises OSError if the socket cannot be made."""
    listener = rootsocket.listen(path)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _converse(reader, writer, pods)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(connected, sock=listener, backlog=rootsocket.BACKLOG)
    async with server:
        await server.serve_forever()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pods: Sandboxes) -> None:
    pid, uid = rootsocket.peer(writer.get_extra_info("socket"))
    if uid != 0:
        log.warning("request refused", reason="only root may use the CNI socket", pid=pid, uid=uid)
        return
    try:
        async with asyncio.timeout(_READ_S):
            size = int(await reader.readexactly(8), 16)
            if size > _MAX_BYTES:
                raise ValueError(f"{size} bytes")
            raw = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, TimeoutError, ValueError, ConnectionError) as error:
        log.warning("request cut short", pid=pid, reason=str(error))
        return
    status, answer = await respond(raw, pods)
    try:
        writer.write(b"%d%08x%s" % (status, len(answer), answer))
        await writer.drain()
    except ConnectionError:
        # What was made stays: the runtime, which did not hear of it, is bound to call DEL.
        log.info("the plugin left before its answer", pid=pid)


async def respond(raw: bytes, pods: Sandboxes) -> tuple[int, bytes]:
    """Carry out one request; return the plugin's exit status and what it prints."""
    version = spec.version_of(raw)
    try:
        request = spec.parse(raw)
        with REQUESTS.labels(request.command).time():
            return 0, await _carry_out(request, pods)
    except CniError as error:
        log.info("CNI request refused", code=int(error.code), reason=str(error))
        return 1, spec.render_error(version, error)
    except Exception as error:
        log.exception("CNI request failed", bug=True)
        return 1, spec.render_error(version, CniError(Code.BUG, "internal error of the agent", repr(error)))


async def _carry_out(request: Request, pods: Sandboxes) -> bytes:
    match request.command:
        case "ADD":
            return spec.render(request.version, await pods.add(request))
        case "DEL":
            await pods.delete(request)
        case "CHECK":
            await pods.check(request)
        case "GC":
            await pods.gc(request)
        case "STATUS":
            await pods.status()
        case "VERSION":
            return spec.render_versions(request.version)
    return b""

"""The recorder's end of `tidegate capture`: a unix socket for root alone, one request a connection."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec
import structlog

from tidegate.crds.node_state import CaptureReceipt
from tidegate.datapath import rootsocket
from tidegate.datapath.capture.ask import Answer, Request
from tidegate.datapath.capture.recorder import Recorder, Refused
from tidegate.datapath.table import TableError

log = structlog.get_logger()

_MAX_BYTES = 1 << 20
_READ_S = 10.0


async def serve(path: Path, recorder: Recorder) -> None:
    """Serve until cancelled. Raises OSError if the socket cannot be made."""
    loop = asyncio.get_running_loop()
    with rootsocket.listen(path) as listener:
        listener.setblocking(False)
        async with asyncio.TaskGroup() as group:
            while True:
                connection, _ = await loop.sock_accept(listener)
                group.create_task(_converse(connection, recorder))


async def _converse(connection: socket.socket, recorder: Recorder) -> None:
    with connection:
        connection.setblocking(False)
        pid, uid = rootsocket.peer(connection)
        if uid != 0:
            log.warning("request refused", reason="only root may record packets", pid=pid, uid=uid)
            return
        try:
            async with asyncio.timeout(_READ_S):
                raw = await _read_line(connection)
            answer = await _answer(connection, raw, recorder)
            if answer is not None:
                await asyncio.get_running_loop().sock_sendall(connection, msgspec.json.encode(answer))
        except (TimeoutError, ConnectionError) as error:
            log.info("the caller left before its answer", pid=pid, reason=str(error))


async def _read_line(connection: socket.socket) -> bytes:
    raw = b""
    while not raw.endswith(b"\n") and len(raw) < _MAX_BYTES:
        chunk = await asyncio.get_running_loop().sock_recv(connection, 65536)
        if not chunk:
            raise ConnectionError("the request was cut short")
        raw += chunk
    return raw


async def _answer(connection: socket.socket, raw: bytes, recorder: Recorder) -> Answer | None:
    """Carry a request out; None if the packets are the answer."""
    try:
        request = msgspec.json.decode(raw, type=Request)
        if request.verb == "fetch":
            await _send_files(connection, await asyncio.to_thread(_find, recorder, request.name))
            return None
        receipts = await asyncio.to_thread(_carry_out, request, recorder, connection.fileno())
        return None if request.stream else Answer(receipts=receipts)
    except (Refused, msgspec.MsgspecError, TableError, ValueError) as error:
        return Answer(error=str(error))
    except ConnectionError:
        raise
    except OSError as error:
        return Answer(error=f"the agent could not do it: {error}")


def _carry_out(request: Request, recorder: Recorder, connection: int) -> list[CaptureReceipt]:
    match request.verb:
        case "stop":
            return [recorder.stop(request.name)]
        case "trigger":
            return [recorder.trigger(request.name, "tidegate capture trigger")]
        case "start" if request.spec is not None:
            if not request.stream:
                return [recorder.start(request.name, request.spec)]
            # The recording has the connection for itself, and closes it at its end.
            own = os.dup(connection)
            try:
                return [recorder.start(request.name, request.spec, stream=own)]
            except BaseException:
                os.close(own)
                raise
        case "start":
            raise Refused("spec: a recording needs one")
    return [receipt for _, receipt in sorted(recorder.receipts().items())]


def _find(recorder: Recorder, name: str) -> list[Path]:
    found = recorder.receipts().get(name)
    if found is None:
        raise Refused(f"no recording named {name} is here: see tidegate capture list")
    there = [path for path in map(Path, found.files) if path.exists()]
    if not there:
        hint = "a ring writes one when it is triggered: tidegate capture trigger" if found.state == "Running" else "it left none"
        raise Refused(f"{name} has no file: {hint}")
    return there


async def _send_files(connection: socket.socket, files: list[Path]) -> None:
    """Files of this format, one after the other, are one file of this format."""
    for path in files:
        with path.open("rb") as file:
            await asyncio.get_running_loop().sock_sendfile(connection, file)

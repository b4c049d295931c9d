"""Speaking to the recorder of the running agent: one request a connection, over its root-only unix socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tidegate.crds.capture import PacketCaptureSpec
from tidegate.crds.meta import Model
from tidegate.crds.node_state import CaptureReceipt

_CHUNK = 1 << 16
_BEGIN = b"{"
"""Of an answer; captured packets begin otherwise."""


class Request(Model):
    """What is asked, as a line of JSON. `stream`: the packets themselves are the answer. `fetch` has files for an answer."""

    verb: Literal["start", "list", "stop", "trigger", "fetch"]
    name: str = ""
    spec: PacketCaptureSpec | None = None
    stream: bool = False


class Answer(Model):
    """What is answered: `error`, or how recordings are."""

    error: str = ""
    receipts: Sequence[CaptureReceipt] = ()


class Unanswered(Exception):
    """The agent refused, or is not there; the message says why, and what to do."""


def ask(path: Path, request: Request) -> Sequence[CaptureReceipt]:
    """Return the agent's answer. Raises Unanswered."""
    return _read(b"".join(_converse(path, request)))


def stream(path: Path, request: Request) -> Iterator[bytes]:
    """Yield what the agent records, as it comes. Raises Unanswered."""
    chunks = _converse(path, request)
    first = next(chunks, b"")
    if first.startswith(_BEGIN):
        _read(first + b"".join(chunks))
    yield first
    yield from chunks


def _read(raw: bytes) -> Sequence[CaptureReceipt]:
    try:
        answer = msgspec.json.decode(raw, type=Answer)
    except msgspec.MsgspecError as error:
        raise Unanswered(f"the agent's answer was cut short: {error}; is it restarting?") from error
    if answer.error:
        raise Unanswered(answer.error)
    return answer.receipts


def _converse(path: Path, request: Request) -> Iterator[bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            raise Unanswered(
                f"no agent answers at {path}: {error.strerror}; does one run here, as root, with this --state-dir?"
            ) from error
        while chunk := connection.recv(_CHUNK):
            yield chunk

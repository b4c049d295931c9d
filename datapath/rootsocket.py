"""A unix socket for root alone: made without a moment in which it is missing or open to others."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

BACKLOG = 256


def listen(path: Path) -> socket.socket:
    """Listen at `path`, in place of whoever did before. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Made aside, closed to others, and moved.
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    listener.bind(str(aside))
    aside.chmod(0o600)
    listener.listen(BACKLOG)
    aside.replace(path)
    return listener


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return (process id, user id) of who is at the other end."""
    pid, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid

"""Serve one port, TCP and UDP, of both families: answers say which client was seen and give back what came."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading

_PKTINFO = struct.Struct("=16sI")
"""`struct in6_pktinfo` (RFC 3542): an address, also of IPv4 as mapped, and a device's number."""


def seen(client: tuple[str, int]) -> bytes:
    """Write a client as answers begin with it."""
    return f"{client[0].replace('::ffff:', '')} {client[1]}\n".encode()


def serve_stream(accepted: socket.socket, client: tuple[str, int]) -> None:
    """Read a length in eight digits and as many bytes, and give them back behind the client's address."""
    with accepted, contextlib.suppress(OSError):
        wanted = int(accepted.recv(8, socket.MSG_WAITALL))
        accepted.sendall(seen(client) + accepted.recv(wanted, socket.MSG_WAITALL))
        accepted.shutdown(socket.SHUT_WR)
        accepted.recv(1)


def serve_datagrams(port: int) -> None:
    """Give every datagram back behind the client's address, from the address to which it came."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as served:
        served.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        served.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        served.bind(("::", port))
        while True:
            body, ((level, kind, came),), _, client = served.recvmsg(65536, socket.CMSG_SPACE(_PKTINFO.size))
            asked = _PKTINFO.pack(_PKTINFO.unpack(came)[0], 0)  # by whatever device the routes say
            # A path found too narrow is told once; the next answer is cut to fit it.
            with contextlib.suppress(OSError):
                served.sendmsg([seen(client) + body], [(level, kind, asked)], 0, client)


if __name__ == "__main__":
    number = int(sys.argv[1])
    threading.Thread(target=serve_datagrams, args=(number,), daemon=True).start()
    with socket.create_server(("::", number), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        print("ready", flush=True)
        while True:
            threading.Thread(target=serve_stream, args=listener.accept()[:2], daemon=True).start()

"""A server outside the cluster: it answers with the source address it sees, and notes even a connection's first packet.

Run as `python -m tidegate.lab.legacy LOG [NAME]`; NAME is the last word of its answers. HTTP on 8080, TCP on 9000, UDP on
9001; both families.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

HTTP_PORT, TCP_PORT, UDP_PORT = 8080, 9000, 9001

_IPV4, _IPV6 = 0x0800, 0x86DD
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_SYN_ACK_BITS, _SYN = 0x12, 0x02
_ECHO_REQUESTS = {_ICMP: 8, _ICMPV6: 128}
_ALL_PROTOCOLS = 3
_EXTENSIONS = {0, 43, 60}


@dataclasses.dataclass(frozen=True)
class Seen:
    """A packet that asked for something: a TCP SYN, a UDP datagram or an ICMP echo request."""

    time: float
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int

    def line(self) -> str:
        """Render it as a line of the log."""
        return " ".join(str(value) for value in dataclasses.astuple(self)) + "\n"


def parse_line(line: str) -> Seen:
    """Read a line of the log.

    >>> parse_line("1.5 tcp 10.0.0.1 4711 198.51.100.10 8080").source
    '10.0.0.1'
    """
    moment, protocol, source, source_port, destination, destination_port = line.split()
    return Seen(float(moment), protocol, source, int(source_port), destination, int(destination_port))


def read_log(file: Path) -> list[Seen]:
    """Read a whole log; a last line still being written is left for the next time."""
    return [parse_line(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def parse_packet(protocol: int, packet: bytes, moment: float) -> Seen | None:
    """Read an IP packet; None when it asks for nothing, or is not whole."""
    if protocol == _IPV4 and len(packet) >= 20:
        family, transport, start = socket.AF_INET, packet[9], (packet[0] & 0xF) * 4
        source, destination = packet[12:16], packet[16:20]
        if struct.unpack_from("!H", packet, 6)[0] & 0x1FFF:
            return None  # a later fragment has no ports
    elif protocol == _IPV6 and len(packet) >= 40:
        family, transport, start = socket.AF_INET6, packet[6], 40
        source, destination = packet[8:24], packet[24:40]
        while transport in _EXTENSIONS and len(packet) >= start + 8:
            transport, start = packet[start], start + (packet[start + 1] + 1) * 8
    else:
        return None
    asked = _asks(transport, packet[start:])
    if asked is None:
        return None
    name, source_port, destination_port = asked
    return Seen(
        moment,
        name,
        socket.inet_ntop(family, source),
        source_port,
        socket.inet_ntop(family, destination),
        destination_port,
    )


def _asks(transport: int, segment: bytes) -> tuple[str, int, int] | None:
    if transport == _TCP and len(segment) >= 20 and segment[13] & _SYN_ACK_BITS == _SYN:
        return ("tcp", *struct.unpack_from("!HH", segment))
    if transport == _UDP and len(segment) >= 8:
        return ("udp", *struct.unpack_from("!HH", segment))
    if transport in _ECHO_REQUESTS and len(segment) >= 8 and segment[0] == _ECHO_REQUESTS[transport]:
        return ("icmp", struct.unpack_from("!H", segment, 4)[0], 0)
    return None


def _sniff(tap: socket.socket, log: TextIO) -> None:
    packet, sender = tap.recvfrom(65535)
    if sender[2] == socket.PACKET_OUTGOING:
        return
    if seen := parse_packet(sender[1], packet, time.time()):
        log.write(seen.line())
        log.flush()


def _answer(address: tuple[str | Any, int], name: str) -> bytes:
    return f"{address[0].removeprefix('::ffff:')} {address[1]} {name}".rstrip().encode() + b"\n"


async def _http(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET "):
            body = _answer(writer.get_extra_info("peername"), name)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has what it wanted
    finally:
        writer.close()


async def _lines(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer once at the start and once a line, for clients that keep a connection open."""
    try:
        writer.write(_answer(writer.get_extra_info("peername"), name))
        while await reader.readline():
            writer.write(_answer(writer.get_extra_info("peername"), name))
            await writer.drain()
    except ConnectionError:
        pass  # clients may go as they like
    finally:
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transport is no DatagramTransport before Python 3.12, so isinstance cannot say it.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._transport.sendto(_answer(addr, self._name), addr)


async def serve(log_file: Path, name: str) -> None:
    """Serve until ended."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS))
    tap.bind(("eth0", _ALL_PROTOCOLS))
    loop = asyncio.get_running_loop()
    with log_file.open("a") as log:
        loop.add_reader(tap, _sniff, tap, log)
        await asyncio.start_server(partial(_http, name), ["0.0.0.0", "::"], HTTP_PORT, backlog=1024)
        await asyncio.start_server(partial(_lines, name), ["0.0.0.0", "::"], TCP_PORT, backlog=1024)
        # For datagrams asyncio opens one socket, and an IPv6 one takes IPv4 too: its senders come as ::ffff:192.0.2.1.
        await loop.create_datagram_endpoint(lambda: _Datagrams(name), ("::", UDP_PORT), family=socket.AF_INET6)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), " ".join(sys.argv[2:])))

"""Packets sent from inside a network namespace of this machine, and who answered."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self, TypeVar

import topology

T = TypeVar("T")
Protocol = Literal["tcp", "udp", "icmp"]

NAMESPACES = Path("/run/netns")
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PROBE = 10, 23, 3
_ECHO = {socket.AF_INET: (8, 0, socket.IPPROTO_ICMP), socket.AF_INET6: (128, 129, socket.IPPROTO_ICMPV6)}
_ports = itertools.count(20_000 + os.getpid() % 20_000)


def fresh_port() -> int:
    """Return a number that no earlier probe of this run has used."""
    return next(_ports)


def inside(namespace: Path, action: Callable[[], T]) -> T:
    """Call `action` in a network namespace; sockets that it opens stay there."""
    return topology.run_in(os.path.relpath(namespace, NAMESPACES), action)


def family(address: str) -> socket.AddressFamily:
    """Return an address's family."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def reaches(namespace: Path, target: str, protocol: Protocol = "tcp", port: int = 0, *, patience: float = 1.0) -> bool:
    """Send one request and tell whether anything came back: data, a refusal, or an echo."""
    if protocol == "icmp":
        return pings(namespace, target, patience=patience)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with inside(namespace, lambda: socket.socket(family(target), kind)) as probe:
        probe.settimeout(patience)
        try:
            probe.connect((target, port))
            if protocol == "udp":
                probe.send(b"?")
                probe.recv(100)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return True


def says(namespace: Path, target: str, port: int, *, patience: float = 2.0, source: str = "") -> str:
    """Connect and return the first line that the other side says; empty when there is none in time."""
    with inside(namespace, lambda: socket.socket(family(target), socket.SOCK_STREAM)) as probe:
        probe.settimeout(patience)
        try:
            if source:
                probe.bind((source, 0))
            probe.connect((target, port))
            with probe.makefile() as answer:
                return answer.readline().strip()
        except OSError:
            return ""


def pings(namespace: Path, target: str, size: int = 56, *, fragments: bool = True, patience: float = 1.0) -> bool:
    """Send one echo request of `size` bytes of data; without `fragments` it may not be split, whatever the path says."""
    request, answer, protocol = _ECHO[family(target)]
    with inside(namespace, lambda: socket.socket(family(target), socket.SOCK_RAW, protocol)) as probe:
        if not fragments:
            level = socket.IPPROTO_IP if protocol == socket.IPPROTO_ICMP else socket.IPPROTO_IPV6
            probe.setsockopt(level, _IP_MTU_DISCOVER if protocol == socket.IPPROTO_ICMP else _IPV6_MTU_DISCOVER, _PROBE)
        probe.settimeout(patience)
        number = fresh_port() & 0xFFFF
        body = struct.pack("!BBHHH", request, 0, 0, number, 1) + b"x" * size
        body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
        try:
            probe.sendto(body, (target, 0))
            until = time.monotonic() + patience
            while time.monotonic() < until:
                packet = probe.recv(65535)
                start = (packet[0] & 0xF) * 4 if protocol == socket.IPPROTO_ICMP else 0
                if packet[start] == answer and packet[start + 4 : start + 6] == struct.pack("!H", number):
                    return True
        except OSError:
            return False
    return False


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Echo:
    """Sends every datagram back, and greets every connection with the address it comes from."""

    def __init__(self, namespace: Path, port: int) -> None:
        self._datagrams = inside(namespace, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        self._listener = inside(namespace, lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
        for each in (self._datagrams, self._listener):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("::", port))
        self._listener.listen()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._echo, self._greet)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._datagrams, self._listener):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _echo(self) -> None:
        with suppress(OSError):
            while True:
                data, sender = self._datagrams.recvfrom(2000)
                if sender is None:  # shut down
                    return
                self._datagrams.sendto(data, sender)

    def _greet(self) -> None:
        with suppress(OSError):
            while True:
                connection, sender = self._listener.accept()
                with connection, suppress(OSError):
                    connection.sendall(f"{sender[0].removeprefix('::ffff:')}\n".encode())


@dataclass
class Stream:
    """Datagrams at an even rate to something that answers each of them; `lost` counts those without an answer."""

    namespace: Path
    target: str
    port: int
    rate: int = 200
    sent: int = 0
    begun: float = 0.0
    answers: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._socket = inside(self.namespace, lambda: socket.socket(family(self.target), socket.SOCK_DGRAM))
        self._socket.connect((self.target, self.port))
        self._socket.settimeout(0.5)
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        self.begun = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def _send(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            with suppress(OSError):
                self._socket.send(b"%d" % self.sent)
            self.sent += 1
            due += 1 / self.rate
            time.sleep(max(0.0, due - time.monotonic()))

    def _receive(self) -> None:
        while True:
            try:
                self._socket.recv(200)
                self.answers.append(time.monotonic())
            except TimeoutError:
                if self._stop.is_set():
                    return
            except OSError:
                continue

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    @property
    def lost(self) -> int:
        """How many got no answer; to be asked when the stream has ended."""
        return self.sent - len(self.answers)

    @property
    def story(self) -> str:
        """What is worth knowing of a loss: its size, and the longest silence and when it began, in seconds."""
        silences = [(after - before, before - self.begun) for before, after in pairwise([self.begun, *self.answers])]
        longest, since = max(silences, default=(0.0, 0.0))
        return f"{self.lost} of {self.sent} lost, no answer for {longest:.2f} s from {since:.2f} s on"

"""The route netlink socket that the tables share, with refusals told in words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate.datapath.table import TableError

ENOENT, ESRCH, EEXIST, ENODEV = 2, 3, 17, 19

_UNREACHABLE = (13, 22, 101, 113)  # EACCES (prohibited), EINVAL (blackhole), ENETUNREACH, EHOSTUNREACH

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

NO_LINK_LOCAL = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
"""IFLA_AF_SPEC of a device that makes itself no link-local address (IN6_ADDR_GEN_MODE_NONE, kernel 3.17)."""

NTF_PROXY = 8
_RTM_GETNEIGH = 30
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DONE, _ERROR = 3, 2
_NDA_DST, _NDA_PROTOCOL = 1, 12
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


class Netlink:
    """A socket in the network namespace of the thread that uses it first. Not to be used within a running event loop."""

    @cached_property
    def route(self) -> Any:
        """The socket itself."""
        return IPRoute()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket if it was opened."""
        if "route" in self.__dict__:
            self.route.close()
            del self.__dict__["route"]

    def index(self, device: str) -> int:
        """Return a device's index; raise TableError if there is none."""
        try:
            return socket.if_nametoindex(device)
        except OSError as error:
            raise TableError(f"there is no device {device}") from error

    def route_to(self, address: IPv4Address | IPv6Address) -> Any | None:
        """Return the kernel's route to an address, or None if it has none."""
        try:
            return next(iter(self.route.route("get", dst=str(address), family=FAMILY[address.version])))
        except NetlinkError as error:
            if error.code in _UNREACHABLE:
                return None
            raise TableError(str(error)) from error

    def proxies(self, family: int) -> Iterator[tuple[int, IPv4Address | IPv6Address, int]]:
        """Yield (ifindex, address, protocol) of proxy entries: pyroute2 cannot ask for them."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as query:
            request = struct.pack("=IHHII", 28, _RTM_GETNEIGH, _DUMP, 1, 0)
            query.send(request + struct.pack("=BBHiHBB", family, 0, 0, 0, 0, NTF_PROXY, 0))
            while True:
                data = query.recv(65536)
                while data:
                    length, kind = struct.unpack_from("=IH", data)
                    if kind == _DONE:
                        return
                    if kind == _ERROR:
                        raise TableError("proxy entries cannot be listed")
                    yield _proxy(data[16:length])
                    data = data[(length + 3) & ~3 :]


def _proxy(body: bytes) -> tuple[int, IPv4Address | IPv6Address, int]:
    (ifindex,) = struct.unpack_from("=i", body, 4)
    address, protocol, at = b"\0" * 4, 0, 12
    while at + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, at)
        value = body[at + 4 : at + size]
        if kind == _NDA_DST:
            address = value
        elif kind == _NDA_PROTOCOL:
            protocol = value[0]
        at += (size + 3) & ~3
    return ifindex, ip_address(address), protocol


@contextlib.contextmanager
def refusals(*forgiven: int) -> Iterator[None]:
    """Turn the kernel's refusals into TableError, but for the error numbers that mean "it is so already"."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in forgiven:
            raise TableError(str(error)) from error
    except OSError as error:
        raise TableError(str(error)) from error


def inside(netns: int, work: Callable[[], T]) -> T:
    """Run `work` in the network namespace of an open file, in a thread of its own, so that no other thread is moved.

    Raises what `work` raises, and OSError if the namespace cannot be entered.
    """
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            if _libc.setns(netns, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
            results.append(work())
        except Exception as error:  # noqa: BLE001 - carried over to the calling thread, which raises it
            failures.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """Open a namespace by path for the length of a `with` block."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None, use_errno=True)

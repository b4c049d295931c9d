"""One rtnetlink socket: requests in batches, dumps filtered by the kernel, errors with the kernel's own words.

A socket belongs to the network namespace of the thread that opened it. Everything here blocks, for microseconds; none of it
needs an event loop, and a `Netlink` may be shared by threads.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tidegate.datapath.table import TableError
from tidegate.datapath.tables import rtnl

T = TypeVar("T")

_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
_SIOCGIFNAME, _SIOCGIFINDEX = 0x8910, 0x8933
_CLONE_NEWNET = 0x40000000
_RECEIVE = 1 << 17
_TRIES = 8
_PATIENCE_S = 10.0

Request = tuple[int, int, bytes]
"""Kind, flags and body of a message."""


class NetlinkError(TableError):
    """The kernel refused; `errno` says why."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(f"{os.strerror(code)} ({errno.errorcode.get(code, code)})" + (f": {message}" if message else ""))
        self.errno = code


class Netlink:
    """A socket in the namespace of the thread that uses it first; then any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._opened: tuple[socket.socket, socket.socket] | None = None

    def close(self) -> None:
        """Close the sockets, if there are any; a later use opens new ones."""
        with self._lock:
            for one in self._opened or ():
                one.close()
            self._opened = None

    def _sockets(self) -> tuple[socket.socket, socket.socket]:
        """Return the netlink socket, and one for names of devices: an ioctl is faster than a dump of all links."""
        if self._opened is None:
            try:
                requests = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            except OSError as error:
                raise NetlinkError(error.errno or errno.EIO, "no netlink socket") from error
            # Strict checks (kernel 4.20) make dumps honour the table and device that we ask for.
            for option in (_CAP_ACK, _EXT_ACK, _STRICT):
                requests.setsockopt(_SOL_NETLINK, option, 1)
            requests.settimeout(_PATIENCE_S)
            requests.bind((0, 0))
            self._opened = requests, names
        return self._opened

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all objects that match. A dump that a change interrupted is begun again.

        Every body begins with its address family. A kernel without IPv6 answers for all families when asked for that one.
        """
        for _ in range(_TRIES):
            with self._lock:
                bodies, _, interrupted = self._exchange([(kind, rtnl.DUMP, body)])
            if not interrupted:
                return [found for found in bodies if not body[0] or found[0] == body[0]]
        raise NetlinkError(errno.EINTR, "the table changes faster than it can be read")

    def get(self, kind: int, body: bytes) -> bytes | None:
        """Return the body of one object; None if the kernel says that there is none."""
        with self._lock:
            bodies, errors, _ = self._exchange([(kind, rtnl.ACK, body)])
        error = errors[0]
        if error is None:
            return bodies[0]
        if error.errno in (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENXIO):
            return None
        raise error

    def try_all(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Send all requests in one write; the kernel does them in order and does not stop at a failure."""
        with self._lock:
            _, errors, _ = self._exchange([(kind, flags | rtnl.ACK, body) for kind, flags, body in requests])
        return errors

    def change(self, *requests: Request, gone: Sequence[int] = ()) -> None:
        """Send all requests; raise the first error that is not among the error numbers of `gone`."""
        for error in self.try_all(requests):
            if error is not None and error.errno not in gone:
                raise error

    def index(self, device: str) -> int | None:
        """Return a device's index; None if there is none of that name."""
        try:
            reply = fcntl.ioctl(self._sockets()[1], _SIOCGIFINDEX, struct.pack("=16si20x", device.encode()[:15], 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise NetlinkError(error.errno or errno.EIO, device) from error
        return int(struct.unpack_from("=16xi", reply)[0])

    def need_index(self, device: str) -> int:
        """Return a device's index; raises `NetlinkError` if there is none of that name."""
        index = self.index(device)
        if index is None:
            raise NetlinkError(errno.ENODEV, device)
        return index

    def name(self, index: int) -> str | None:
        """Return the name of the device with this index."""
        try:
            reply = fcntl.ioctl(self._sockets()[1], _SIOCGIFNAME, struct.pack("=16xi20x", index))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                return None
            raise NetlinkError(error.errno or errno.EIO, str(index)) from error
        return rtnl.string(reply[:16].partition(b"\0")[0])

    def _exchange(self, requests: Sequence[Request]) -> tuple[list[bytes], list[NetlinkError | None], bool]:
        first = self._sequence + 1
        self._sequence += len(requests)
        self._send(b"".join(rtnl.message(kind, flags, first + at, body) for at, (kind, flags, body) in enumerate(requests)))
        bodies: list[bytes] = []
        errors: dict[int, NetlinkError | None] = {}
        interrupted = False
        while len(errors) < len(requests):
            for kind, flags, sequence, body in rtnl.messages(self._receive()):
                if not first <= sequence < first + len(requests):
                    continue  # the rest of an exchange that an exception cut short
                interrupted |= bool(flags & rtnl.DUMP_INTR)
                if kind == rtnl.ERROR or kind == rtnl.DONE:
                    errors[sequence] = _error(kind, flags, body)
                else:
                    bodies.append(body)
        if len(requests) == 1 and errors[first] is not None and requests[0][1] & rtnl.DUMP == rtnl.DUMP:
            raise errors[first] or AssertionError
        return bodies, [errors[first + at] for at in range(len(requests))], interrupted

    def _send(self, raw: bytes) -> None:
        try:
            self._sockets()[0].sendto(raw, (0, 0))
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, "a request could not be sent") from error

    def _receive(self) -> bytes:
        try:
            return self._sockets()[0].recv(_RECEIVE)
        except OSError as error:  # a timeout, which has no number, too
            raise NetlinkError(error.errno or errno.ETIMEDOUT, "no answer could be received") from error


def _error(kind: int, flags: int, body: bytes) -> NetlinkError | None:
    code = -int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else 0
    if code <= 0:
        return None
    # Kernel: an error's extended attributes follow the echoed header (CAP_ACK leaves out the payload).
    at = 20 if kind == rtnl.ERROR else 4
    words = rtnl.attributes(body, at).get(1) if flags & rtnl.ACK_TLVS else None
    return NetlinkError(code, rtnl.string(words))


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


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """Open a namespace by path for the length of a `with` block."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None, use_errno=True)

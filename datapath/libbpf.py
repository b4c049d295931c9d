"""The one door to the bpf system call: a dozen functions of `libbpf.so.1`, by ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import functools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TCX_INGRESS = 46
TCX_EGRESS = 47
XDP = 37


class BpfError(OSError):
    """A refused bpf operation; `errno` is set."""


@functools.cache
def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("bpf") or "libbpf.so.1"
    try:
        library = ctypes.CDLL(name, use_errno=True)
    except OSError as error:
        raise BpfError(errno.ENOENT, "libbpf.so.1 is missing; install the package libbpf1") from error
    library.libbpf_set_print(None)
    return library


def call(name: str, *args: object) -> int:
    """Call a libbpf function that returns a negative number on failure; raise BpfError then."""
    result: int = getattr(_library(), name)(*args)
    if result < 0:
        # Debian 12's libbpf 1.1 returns -errno; older ones return -1 and set errno.
        number = -result if result != -1 else ctypes.get_errno() or errno.EPERM
        raise BpfError(number, f"{name}: {os.strerror(number)}")
    return result


@contextlib.contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close `fd` at the end of a `with` block."""
    try:
        yield fd
    finally:
        os.close(fd)


def obj_get(path: Path) -> int:
    """Open what is pinned at `path`; return a file descriptor that the caller closes."""
    return call("bpf_obj_get", os.fsencode(path))


def obj_pin(fd: int, path: Path) -> None:
    """Pin a program, map or link at `path`, replacing what is pinned there.

    bpffs has no rename over an existing pin, so there is a moment without a pin; what is attached stays attached.
    """
    path.unlink(missing_ok=True)
    call("bpf_obj_pin", fd, os.fsencode(path))


def info(fd: int, size: int = 256) -> bytes:
    """Return the kernel's description of an object; its layout is that of `bpf_map_info` and its sisters."""
    buffer = ctypes.create_string_buffer(size)
    length = ctypes.c_uint32(size)
    call("bpf_obj_get_info_by_fd", fd, buffer, ctypes.byref(length))
    return buffer.raw


def prog_id(fd: int) -> int:
    """Return the id of a program (`bpf_prog_info.id`)."""
    return int(struct.unpack_from("=II", info(fd))[1])


def link_target(fd: int) -> tuple[int, int]:
    """Return (program id, ifindex) of a tcx (kernel 6.6) or XDP link; ifindex 0 once its device is gone."""
    _, _, program, _, ifindex = struct.unpack_from("=IIIII", info(fd))
    return program, ifindex


class _LinkCreate(ctypes.Structure):
    """`struct bpf_link_create_opts` of libbpf 0.1 and newer, without what comes after the flags."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
    )


def link_create(prog_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attach a program to a device by a link; return the link's file descriptor."""
    options = _LinkCreate(sz=ctypes.sizeof(_LinkCreate), flags=flags)
    return call("bpf_link_create", prog_fd, ifindex, attach_type, ctypes.byref(options))


def link_update(link_fd: int, prog_fd: int) -> None:
    """Replace the program of a link at once, with no packet seen by neither or by both."""
    call("bpf_link_update", link_fd, prog_fd, None)


def lookup(map_fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the value under `key` (for per-CPU maps `value_size` spans all CPUs), or None."""
    buffer = ctypes.create_string_buffer(value_size)
    try:
        call("bpf_map_lookup_elem", map_fd, key, buffer)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return buffer.raw


def update(map_fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Set the value under `key`."""
    _library().bpf_map_update_elem.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64]
    call("bpf_map_update_elem", map_fd, key, value, flags)


MAP_ARRAY = 2
F_MMAPABLE = 1 << 10


def map_create(kind: int, name: str, sizes: tuple[int, int], max_entries: int, flags: int) -> int:
    """Make a map of `sizes` (key, value) bytes; return a file descriptor that the caller closes."""
    options = ctypes.create_string_buffer(64)  # `struct bpf_map_create_opts` (libbpf 0.7): size, five words, flags
    struct.pack_into("=Q6I", options, 0, len(options), 0, 0, 0, 0, 0, flags)
    return call("bpf_map_create", kind, name.encode(), *sizes, max_entries, options)


def delete(map_fd: int, key: bytes) -> None:
    """Remove `key`; already gone is a success."""
    try:
        call("bpf_map_delete_elem", map_fd, key)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise


def items(map_fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield every pair. Pairs that come or go meanwhile may be missed or yielded; none is yielded half-written."""
    key = None
    following = ctypes.create_string_buffer(key_size)
    while True:
        try:
            call("bpf_map_get_next_key", map_fd, key, following)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        key = following.raw
        value = lookup(map_fd, key, value_size)
        if value is not None:
            yield key, value


_Sample = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
_Lost = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64)


class _PerfCallbacks(ctypes.Structure):
    """`struct perf_buffer_opts` before libbpf 0.6."""

    _fields_ = (("sample", _Sample), ("lost", _Lost), ("context", ctypes.c_void_p))


class PerfRing:
    """Reads what programs put into a BPF_MAP_TYPE_PERF_EVENT_ARRAY: one ring a CPU, of `pages` (a power of two) memory pages.

    `on_sample` gets each sample's bytes, which the kernel may have padded; `on_lost` how many found no room. `close` it.
    """

    def __init__(self, map_fd: int, pages: int, on_sample: Callable[[bytes], None], on_lost: Callable[[int], None]) -> None:
        self._failure: BaseException | None = None

        def sample(_context: int, _cpu: int, data: int, size: int) -> None:
            self._shield(lambda: on_sample(ctypes.string_at(data, size)))

        def lost(_context: int, _cpu: int, count: int) -> None:
            self._shield(lambda: on_lost(count))

        # The library calls them for as long as the ring lives.
        self._callbacks = _Sample(sample), _Lost(lost)
        self._ring = _perf_buffer_new(map_fd, pages, *self._callbacks)

    def _shield(self, act: Callable[[], None]) -> None:
        if self._failure is None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001  ctypes would print and forget it; `poll` raises it
                self._failure = error

    def poll(self, timeout_ms: int) -> None:
        """Wait for samples and hand over all there are; a callback's exception is raised here and ends the reading."""
        try:
            call("perf_buffer__poll", ctypes.c_void_p(self._ring), timeout_ms)
        except BpfError as error:
            if error.errno != errno.EINTR:
                raise
        self._raise()

    def drain(self) -> None:
        """Hand over what is there, without waiting, also what woke nobody yet."""
        call("perf_buffer__consume", ctypes.c_void_p(self._ring))
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    @property
    def fd(self) -> int:
        """An epoll file descriptor that is readable when there are samples."""
        return call("perf_buffer__epoll_fd", ctypes.c_void_p(self._ring))

    def close(self) -> None:
        """Give the memory back; samples not yet read are gone."""
        if self._ring:
            library = _library()
            library.perf_buffer__free.restype = None
            library.perf_buffer__free(ctypes.c_void_p(self._ring))
            self._ring = 0


def _perf_buffer_new(map_fd: int, pages: int, sample: Any, lost: Any) -> int:
    library = _library()
    size = ctypes.c_size_t(pages)
    if hasattr(library, "libbpf_major_version"):
        # 0.6 to 0.8 keep the older form under the plain name.
        create = getattr(library, "perf_buffer__new_v0_6_0", library.perf_buffer__new)
        arguments: tuple[Any, ...] = (map_fd, size, sample, lost, None, None)
    else:
        create = library.perf_buffer__new
        arguments = (map_fd, size, ctypes.byref(_PerfCallbacks(sample, lost, None)))
    create.restype = ctypes.c_void_p
    ring: int | None = create(*arguments)
    number = ctypes.get_errno()
    # Before 1.0 failures came as pointers to the last page of memory.
    if not ring or ring > 2**64 - 4096:
        number = 2**64 - ring if ring else number or errno.EPERM
        raise BpfError(number, f"perf_buffer__new: {os.strerror(number)}")
    return ring


def batches(map_fd: int, key_size: int, value_size: int, length: int = 4096) -> Iterator[tuple[bytes, bytes]]:
    """Yield all keys and all values, many at a time (kernel 5.6; hashes and arrays)."""
    keys, values = ctypes.create_string_buffer(key_size * length), ctypes.create_string_buffer(value_size * length)
    # The cursor is the kernel's own: a bucket's number for hashes, a key for arrays.
    cursor, count = ctypes.create_string_buffer(max(key_size, 4)), ctypes.c_uint32()
    before = None
    while True:
        count.value = length
        is_last = False
        try:
            call("bpf_map_lookup_batch", map_fd, before, cursor, keys, values, ctypes.byref(count), None)
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            is_last = True
        yield keys.raw[: key_size * count.value], values.raw[: value_size * count.value]
        if is_last:
            return
        before = ctypes.create_string_buffer(cursor.raw, len(cursor))


class _TestRun(ctypes.Structure):
    """`struct bpf_test_run_opts` of libbpf 0.2 and newer."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def prog_test_run(prog_fd: int, packet: bytes, context: bytes = b"", repeat: int = 1) -> tuple[int, bytes, int, bytes]:
    """Run a program on a packet; return (verdict as a signed number, packet out, ns a run, context out)."""
    out = ctypes.create_string_buffer(len(packet) + 256)
    context_out = ctypes.create_string_buffer(max(len(context), 1))
    options = _TestRun(
        sz=ctypes.sizeof(_TestRun),
        data_in=packet,
        data_size_in=len(packet),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        ctx_in=context or None,
        ctx_size_in=len(context),
        ctx_out=ctypes.addressof(context_out) if context else None,
        ctx_size_out=len(context),
        repeat=repeat,
    )
    call("bpf_prog_test_run_opts", prog_fd, ctypes.byref(options))
    verdict = ctypes.c_int32(options.retval).value
    return verdict, out.raw[: options.data_size_out], options.duration, context_out.raw[: len(context)]

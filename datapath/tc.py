"""Attaching a program to a device's tc hooks: tcx links from kernel 6.6, a cls_bpf filter before that."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

from tidegate.datapath import libbpf

Hook = Literal["ingress", "egress"]
HOOKS: tuple[Hook, Hook] = ("ingress", "egress")

_POINTS = {"ingress": 1, "egress": 2}
_TCX = {"ingress": libbpf.TCX_INGRESS, "egress": libbpf.TCX_EGRESS}
_REPLACE = 1


class Attachments(Protocol):
    """One of the two ways; all verbs are idempotent and raise `libbpf.BpfError`."""

    def attached(self, device: str, ifindex: int, hook: Hook) -> int | None:
        """Return the id of our program on the hook, or None."""

    def attach(self, device: str, ifindex: int, hook: Hook, prog_fd: int) -> None:
        """Attach, or replace in one step what we attached before."""

    def detach(self, device: str, ifindex: int, hook: Hook) -> None:
        """Remove our program from the hook."""

    def left_over(self, devices: Iterable[str]) -> list[tuple[str, Hook]]:
        """List what we hold for devices that are not among `devices`, because they are gone."""


class Links:
    """tcx links, pinned in a directory under `<device>:<hook>`; the pin's name makes them ours."""

    def __init__(self, pins: Path) -> None:
        self._pins = pins

    def _pin(self, device: str, hook: Hook) -> Path:
        return self._pins / f"{device}:{hook}"

    def attached(self, device: str, ifindex: int, hook: Hook) -> int | None:
        """Return the id of our program on the hook; None if the link belonged to an earlier device of that name."""
        try:
            fd = libbpf.obj_get(self._pin(device, hook))
        except libbpf.BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        with libbpf.opened(fd):
            program, target = libbpf.link_target(fd)
        return program if target == ifindex else None

    def attach(self, device: str, ifindex: int, hook: Hook, prog_fd: int) -> None:
        """Attach, or replace in one step what we attached before."""
        pin = self._pin(device, hook)
        if self.attached(device, ifindex, hook) is not None:
            with libbpf.opened(libbpf.obj_get(pin)) as fd:
                libbpf.link_update(fd, prog_fd)
            return
        with libbpf.opened(libbpf.link_create(prog_fd, ifindex, _TCX[hook])) as fd:
            libbpf.obj_pin(fd, pin)

    def detach(self, device: str, ifindex: int, hook: Hook) -> None:
        """Remove the pin, and the link with it."""
        self._pin(device, hook).unlink(missing_ok=True)

    def left_over(self, devices: Iterable[str]) -> list[tuple[str, Hook]]:
        """List the pins of vanished devices."""
        known = {f"{device}:{hook}" for device in devices for hook in HOOKS}
        gone = sorted(pin.name for pin in self._pins.iterdir() if pin.name not in known)
        return [(name.rpartition(":")[0], "egress" if name.endswith("egress") else "ingress") for name in gone]


class _HookOptions(ctypes.Structure):
    """`struct bpf_tc_hook` (libbpf 0.4)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    )


class _FilterOptions(ctypes.Structure):
    """`struct bpf_tc_opts` (libbpf 0.4)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    )


class Filters:
    """cls_bpf filters; their priority, one that nobody else uses, makes them ours. They vanish with their device."""

    def __init__(self, priority: int) -> None:
        self._priority = priority

    def _options(self, ifindex: int, hook: Hook) -> tuple[_HookOptions, _FilterOptions]:
        return (
            _HookOptions(sz=ctypes.sizeof(_HookOptions), ifindex=ifindex, attach_point=_POINTS[hook]),
            _FilterOptions(sz=ctypes.sizeof(_FilterOptions), handle=1, priority=self._priority),
        )

    def attached(self, device: str, ifindex: int, hook: Hook) -> int | None:
        """Return the id of our program on the hook, or None."""
        place, found = self._options(ifindex, hook)
        try:
            libbpf.call("bpf_tc_query", ctypes.byref(place), ctypes.byref(found))
        except libbpf.BpfError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):  # EINVAL: the device has no clsact qdisc
                return None
            raise
        return int(found.prog_id)

    def attach(self, device: str, ifindex: int, hook: Hook, prog_fd: int) -> None:
        """Attach, or replace in one step what we attached before."""
        place, wanted = self._options(ifindex, hook)
        try:
            libbpf.call("bpf_tc_hook_create", ctypes.byref(place))
        except libbpf.BpfError as error:
            if error.errno != errno.EEXIST:
                raise
        wanted.prog_fd = prog_fd
        wanted.flags = _REPLACE
        libbpf.call("bpf_tc_attach", ctypes.byref(place), ctypes.byref(wanted))

    def detach(self, device: str, ifindex: int, hook: Hook) -> None:
        """Remove our filter; the qdisc stays, since others may use it."""
        place, wanted = self._options(ifindex, hook)
        try:
            libbpf.call("bpf_tc_detach", ctypes.byref(place), ctypes.byref(wanted))
        except libbpf.BpfError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise

    def left_over(self, devices: Iterable[str]) -> list[tuple[str, Hook]]:
        """Nothing: filters go with their device."""
        return []

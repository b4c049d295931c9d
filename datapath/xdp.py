"""Attaching a program to a device's XDP hook: in the driver where it can, in the kernel's generic path else."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidegate.datapath import libbpf

Mode = Literal["native", "generic"]

_FLAGS: dict[Mode, int] = {"native": 1 << 2, "generic": 1 << 1}
"""XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE of linux/if_link.h."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What of ours is on a device: the program's id, and how it is run."""

    program: int
    mode: Mode


class XdpLinks:
    """XDP links (kernel 5.9), pinned in a directory under `<device>:<mode>`; the pin's name makes them ours.

    The pinned link keeps the program attached whatever becomes of the agent; nobody else can replace it meanwhile.
    """

    def __init__(self, pins: Path) -> None:
        self._pins = pins

    def _pin(self, device: str, mode: Mode) -> Path:
        return self._pins / f"{device}:{mode}"

    def attached(self, device: str, ifindex: int) -> Attached | None:
        """Return what of ours is on the device; None also if the link belonged to an earlier device of that name."""
        for mode in _FLAGS:
            try:
                fd = libbpf.obj_get(self._pin(device, mode))
            except libbpf.BpfError as error:
                if error.errno == errno.ENOENT:
                    continue
                raise
            with libbpf.opened(fd):
                program, target = libbpf.link_target(fd)
            if target == ifindex:
                return Attached(program, mode)
        return None

    def attach(self, device: str, ifindex: int, prog_fd: int) -> Mode:
        """Attach, or replace in one step what we attached before; return how the program is run now.

        Raises `libbpf.BpfError`: EBUSY or EEXIST if a program of somebody else is there.
        """
        there = self.attached(device, ifindex)
        if there:
            with libbpf.opened(libbpf.obj_get(self._pin(device, there.mode))) as fd:
                libbpf.link_update(fd, prog_fd)
            return there.mode
        self.detach(device)  # what an earlier device of this name left
        try:
            return self._attach(device, ifindex, prog_fd, "native")
        except libbpf.BpfError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                raise
            # Drivers refuse for reasons of their own: no support, MTU over a page, too few queues.
            return self._attach(device, ifindex, prog_fd, "generic")

    def _attach(self, device: str, ifindex: int, prog_fd: int, mode: Mode) -> Mode:
        with libbpf.opened(libbpf.link_create(prog_fd, ifindex, libbpf.XDP, _FLAGS[mode])) as fd:
            libbpf.obj_pin(fd, self._pin(device, mode))
        return mode

    def detach(self, device: str) -> None:
        """Remove the pin, and with it the link and its program from the device."""
        for mode in _FLAGS:
            self._pin(device, mode).unlink(missing_ok=True)

    def left_over(self, devices: Iterable[str]) -> list[str]:
        """List the devices that are not among `devices` and for which we still hold a link."""
        held = {pin.name.rpartition(":")[0] for pin in self._pins.iterdir()}
        return sorted(held - set(devices))

"""Which of our programs runs on which hook of which device."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from tidegate.datapath import libbpf
from tidegate.datapath.table import TableError
from tidegate.datapath.tc import HOOKS, Attachments, Hook

OUTDATED = "outdated"
"""What `read` says of a program that an earlier version of the agent attached."""


def names_by_id(pins: Path) -> dict[int, str]:
    """Return the names of the programs that are pinned in a folder, by the kernel's ids."""
    names = {}
    for pin in pins.iterdir():
        with libbpf.opened(libbpf.obj_get(pin)) as fd:
            names[libbpf.prog_id(fd)] = pin.name
    return names


class ProgramTable:
    """Key (device, hook), value the program's name. `pins` is the folder of the programs of this version."""

    name = "programs"

    def __init__(self, attachments: Attachments, pins: Path) -> None:
        self._attachments = attachments
        self._pins = pins
        self._names = names_by_id(pins)

    def read(self) -> Mapping[tuple[str, Hook], str]:
        """Return what is attached, to devices that have gone too."""
        devices = {name: index for index, name in socket.if_nameindex()}
        present: dict[tuple[str, Hook], str] = dict.fromkeys(self._attachments.left_over(devices), OUTDATED)
        try:
            for device, ifindex in devices.items():
                for hook in HOOKS:
                    attached = self._attachments.attached(device, ifindex, hook)
                    if attached is not None:
                        present[device, hook] = self._names.get(attached, OUTDATED)
        except libbpf.BpfError as error:
            raise TableError(str(error)) from error
        return present

    def put(self, key: tuple[str, Hook], value: str) -> None:
        """Attach the program, in one step if an older one is there."""
        device, hook = key
        try:
            ifindex = socket.if_nametoindex(device)
            with libbpf.opened(libbpf.obj_get(self._pins / value)) as fd:
                self._attachments.attach(device, ifindex, hook, fd)
        except OSError as error:
            raise TableError(f"{value} cannot be attached to {device}: {error}") from error

    def drop(self, key: tuple[str, Hook]) -> None:
        """Detach what is on the hook."""
        device, hook = key
        ifindex = {name: index for index, name in socket.if_nameindex()}.get(device, 0)
        try:
            self._attachments.detach(device, ifindex, hook)
        except OSError as error:
            raise TableError(f"cannot be detached from {device}: {error}") from error

"""Which of our programs runs on the XDP hook of which device, and how."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from pathlib import Path

from tidegate.datapath import libbpf
from tidegate.datapath.table import TableError
from tidegate.datapath.tables.programs import OUTDATED, names_by_id
from tidegate.datapath.xdp import Mode, XdpLinks


class XdpTable:
    """Key the device, value the program's name. `pins` is the folder of the programs of this version."""

    name = "xdp"

    def __init__(self, links: XdpLinks, pins: Path) -> None:
        self._links = links
        self._pins = pins
        self._names = names_by_id(pins)
        self.modes: dict[str, Mode] = {}
        """How the program is run, by device, as it was last read."""

    def read(self) -> Mapping[str, str]:
        """Return what of ours is attached, to devices that have gone too."""
        devices = {name: index for index, name in socket.if_nameindex()}
        present = dict.fromkeys(self._links.left_over(devices), OUTDATED)
        modes: dict[str, Mode] = {}
        try:
            for device, ifindex in devices.items():
                attached = self._links.attached(device, ifindex)
                if attached is not None:
                    present[device] = self._names.get(attached.program, OUTDATED)
                    modes[device] = attached.mode
        except libbpf.BpfError as error:
            raise TableError(str(error)) from error
        self.modes = modes
        return present

    def put(self, key: str, value: str) -> None:
        """Attach the program, in one step if an older one of ours is there."""
        try:
            with libbpf.opened(libbpf.obj_get(self._pins / value)) as fd:
                self.modes[key] = self._links.attach(key, socket.if_nametoindex(key), fd)
        except OSError as error:
            remedy = ""
            if error.errno in (errno.EBUSY, errno.EEXIST):
                remedy = f": another XDP program is there; take it off with `ip link set {key} xdp off`"
            raise TableError(f"{value} cannot be attached to {key}: {error}{remedy}") from error

    def drop(self, key: str) -> None:
        """Detach our program."""
        self._links.detach(key)
        self.modes.pop(key, None)

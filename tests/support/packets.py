"""Run packets through the loaded programs, with the maps filled by name."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tidegate.datapath import libbpf
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.order import mapped
from tidegate.datapath.programs import Loaded
from tidegate.datapath.tables.maps import MapTable, read_counters

PASS, DROP, REDIRECT = -1, 2, 7


@dataclass
class Verdict:
    """What a program did with a packet."""

    verdict: int
    reason: str
    packet: Any
    mark: int


def addr(text: str) -> bytes:
    """An address as the maps have it."""
    return mapped(ip_address(text))


def frame(**fields: Any) -> Ether:
    """An Ethernet header with addresses of its own, so that scapy asks nobody for them."""
    return Ether(src="02:00:00:00:00:01", dst="02:74:67:00:00:01", **fields)


class Harness:
    """The programs of one test, with empty maps."""

    arrays: tuple[str, ...] = ("tg_config", "tg_counter")
    counter = "tg_counter"

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.layout = loaded.layout
        self.maps = {name: MapTable(loaded.maps / name, layout) for name, layout in loaded.layout.maps.items()}
        self.programs = {pin.name: libbpf.obj_get(pin) for pin in loaded.programs.iterdir()}
        self.clear()

    def close(self) -> None:
        """Close what was opened: a whole tier in one process would use up a kernel's 1024 files."""
        for fd in (*(table._fd for table in self.maps.values()), *self.programs.values()):
            os.close(fd)

    def clear(self) -> None:
        """Empty every map but the arrays."""
        for name, table in self.maps.items():
            if name in self.arrays:
                continue
            for key in table.read():
                table.drop(key)

    def put(self, table: str, key: Fields | int, **value: Any) -> None:
        """Set a row."""
        self.maps[table].put(fields(value=key) if isinstance(key, int) else key, fields(**value))

    def rows(self, table: str) -> dict[Fields, Fields]:
        """All rows of a map."""
        return dict(self.maps[table].read())

    def counters(self) -> dict[str, int]:
        """Packets by reason."""
        return read_counters(self.maps[self.counter]._fd, self.layout, self.counter)

    def run(self, program: str, packet: Packet | bytes, device: str = "pod0", mark: int = 0) -> Verdict:
        """Send one packet through a program as if it were on `device`."""
        context = bytearray(192)
        struct.pack_into("=I", context, 8, mark)
        struct.pack_into("=I", context, 40, socket.if_nametoindex(device))
        verdict, reason, out, context_out = self.count(program, bytes(packet), bytes(context))
        return Verdict(verdict, reason, Ether(out), struct.unpack_from("=I", context_out, 8)[0])

    def count(self, program: str, packet: bytes, context: bytes) -> tuple[int, str, bytes, bytes]:
        """Run once; return the verdict, the one reason that was counted, the packet and the context."""
        before = self.counters()
        verdict, out, _, context_out = libbpf.prog_test_run(self.programs[program], packet, context)
        after = self.counters()
        counted = [reason for reason in after if after[reason] != before[reason]]
        assert len(counted) == 1, f"a packet is counted exactly once, not {counted}"
        return verdict, counted[0], out, context_out


def with_right_checksums(packet: Packet) -> Packet:
    """The same packet with every checksum computed anew, to compare with."""
    fresh = packet.copy()
    for layer in fresh.iterpayloads() if hasattr(fresh, "iterpayloads") else ():
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                del layer.fields[name]
    return Ether(bytes(fresh))


def network(packet: Packet) -> Packet:
    """The IP layer."""
    return packet[IP] if IP in packet else packet[IPv6]

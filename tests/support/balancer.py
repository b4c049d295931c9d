"""Run frames through the load balancer's program, with its maps filled by name."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from packets import Harness, Verdict, addr
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tidegate.datapath import libbpf
from tidegate.datapath.layout import fields
from tidegate.datapath.programs import Loaded

ABORTED, DROP, PASS, TX, REDIRECT = range(5)
DNAT, RANDOM, AFFINITY, RANGES, INNER_PORT, STATELESS = (1 << bit for bit in range(6))

TCP_, UDP_ = 6, 17
_born = itertools.count(os.getpid() << 8)


def word(raw: bytes) -> int:
    """Bytes in network order as the maps have them."""
    return int.from_bytes(raw, sys.byteorder)


def port(number: int) -> int:
    """A port as the maps have it."""
    return word(struct.pack("!H", number))


class Balancer(Harness):
    """One balancer with empty tables."""

    arrays = (
        "tg_lb_config",
        "tg_lb_counters",
        "tg_lb_count",
        "tg_hop",
        "tg_service",
        "tg_backend",
        "tg_slots",
        "tg_lb_programs",
        *(f"tg_capture_{name}" for name in ("config", "mask", "seen", "count", "events")),
    )
    counter = "tg_lb_counters"

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        for number in range(64):
            self.put("tg_service", number)
            self.put("tg_backend", number)
        self._free = 2
        self.put("tg_lb_config", 0, icmp_rate=1000)

    def backend(self, number: int, address: str, backend_port: int = 0) -> int:
        """Set a backend; return its nonce."""
        born = next(_born) & 0xFFFFFFFF
        self.put("tg_backend", number, addr=addr(address), port=port(backend_port), born=born)
        return born

    def vip(self, address: str, frontend_port: int = 0, proto: int = 0, service: int = 0, flags: int = 0) -> None:
        """Set a frontend, or with port 0 the address itself."""
        parsed = ip_address(address)
        if parsed.version == 4:
            key = fields(addr=word(parsed.packed), port=port(frontend_port), proto=proto)
        else:
            key = fields(addr=parsed.packed, port=port(frontend_port), proto=proto)
        self.put(f"tg_vip{parsed.version}", key, service=service, flags=flags)

    def service(self, number: int, slots: Sequence[int], **row: Any) -> None:
        """Set a service whose table has these backend ids."""
        defaults = {"source4": addr("172.30.0.11"), "len4": 32, "source6": addr("fd30::11"), "len6": 128, "seed": 7}
        self.put("tg_service", number, offset=self.table(slots), size=len(slots), **(defaults | row))

    def table(self, slots: Sequence[int]) -> int:
        """Write a table behind those that are there; return its offset."""
        offset, entries = self._free, (len(slots) + 1) // 2
        self._free += 2 * entries
        for pair in range(entries):
            two = struct.pack("=2I", *[*slots[2 * pair : 2 * pair + 2], 0][:2])
            libbpf.update(self.maps["tg_slots"]._fd, (offset // 2 + pair).to_bytes(4, sys.byteorder), two)
        return offset

    def set_on_every_cpu(self, name: str, value: bytes) -> None:
        """Set the one row of a per-CPU array."""
        libbpf.update(self.maps[name]._fd, bytes(4), value * self.layout.maps[name].cpus)

    def frame(self, packet: Packet | bytes, device: str = "up0") -> Verdict:
        """Let one frame arrive on a device."""
        raw = bytes(packet)
        context = struct.pack("=6I", 0, len(raw), 0, socket.if_nametoindex(device), 0, 0)
        verdict, reason, out, _ = self.count("lb", raw, context)
        return Verdict(verdict, reason, Ether(out), 0)

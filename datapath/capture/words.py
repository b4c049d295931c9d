"""What is said of a captured packet in its comments: filter, virtual address, backend, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

import msgspec

from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import name_backend
from tidegate.datapath.capture.filters import Filter, matching, render
from tidegate.datapath.capture.records import Packet
from tidegate.datapath.layout import Fields
from tidegate.datapath.lowering.lb import PROTOCOLS, network_order
from tidegate.datapath.order import mapped

_VERDICTS = {"drop": "dropped", "pass": "passed to the stack", "forward": "sent"}

_RESET = 0x04
"""RFC 9293, the RST flag."""

End = tuple[bytes, int, int]
"""Address (IPv4 mapped), port, protocol."""


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What stands behind numbers: load balancers by frontend, backends by id, and reasons in their order."""

    frontends: Mapping[End, str] = {}
    backends: Mapping[int, str] = {}
    reasons: Sequence[str] = ()


def frontends(services: Sequence[BalancedService]) -> dict[End, str]:
    """Name the LoadBalancer of every frontend."""
    return {
        (mapped(ip_address(each.address)), each.port, PROTOCOLS[each.protocol]): service.name
        for service in services
        for each in service.spec.frontends
    }


def backends(ids: Mapping[Fields, int]) -> dict[int, str]:
    """Name backends as `address:port`, from the keys of tg_backend; a backend without a port of its own is its address."""
    found = {}
    for key, number in ids.items():
        named = dict(key)
        # From network order as into it.
        found[number] = _end(bytes(named.get("addr", b"")), network_order(int(named.get("port", 0))))
    return found


def reason(packet: Packet, names: Names) -> str:
    """Return what became of a packet, as `drop_no_backend`; "" if that is not known."""
    last = packet.last
    return names.reasons[last.reason] if last.verdict is not None and last.reason < len(names.reasons) else ""


def is_reset(packet: Packet) -> bool:
    """Tell whether the packet resets a TCP connection."""
    return bool(packet.last.tcp_flags & _RESET)


class Commenter:
    """Writes the comments of one recording's packets. They repeat, so they are remembered."""

    def __init__(self, name: str, filters: Sequence[Filter], names: Names) -> None:
        self._name, self._filters, self._names = name, filters, names
        self._remembered = lru_cache(maxsize=4096)(self._comments)

    def comments(self, packet: Packet) -> tuple[str, ...]:
        """Return the comments of all records of a packet."""
        return self._remembered(packet.last.flow, packet.last.backend, reason(packet, self._names))

    def _comments(self, flow: bytes, backend: int, why: str) -> tuple[str, ...]:
        taken = matching(self._filters, flow)
        said = [f"capture {self._name}, filter {render(taken) if taken else 'changed'}"]
        if vip := self._vip(flow):
            said.append(vip)
        if backend:
            said.append(f"backend {self._names.backends.get(backend, f'number {backend}, gone')}")
        verdict, _, rest = why.partition("_")
        if why:
            said.append(f"{_VERDICTS[verdict]}: {rest}")
        return tuple(said)

    def _vip(self, flow: bytes) -> str:
        source, target, proto = flow[:16], flow[16:32], flow[36]
        for addr, port in ((target, int.from_bytes(flow[34:36], "big")), (source, int.from_bytes(flow[32:34], "big"))):
            name = self._names.frontends.get((addr, port, proto))
            if name is not None:
                return f"VIP {_end(addr, port)} of LoadBalancer/{name}"
        known = {addr for addr, _, _ in self._names.frontends}
        return next((f"VIP {_end(addr, 0)}" for addr in (target, source) if addr in known), "")


def _end(addr: bytes, port: int) -> str:
    address = IPv6Address(addr)
    text = str(address.ipv4_mapped or address)
    return name_backend(text, port) if port else text

"""Telling the neighbours who answers for an egress address now: gratuitous ARP and unsolicited neighbour advertisements."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from tidegate.datapath.table import TableError

REPEATS = 3
"""Once a pass, so that one lost frame costs seconds and not the neighbour cache's minutes."""

_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_ALL_NODES = "ff02::1"
_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_LAYER = 136, 0x20000000, 2

AnnouncementKey = tuple[str, IPv4Address | IPv6Address]


class AnnouncementTable:
    """Key (device, address), value True once it has been told `REPEATS` times.

    What neighbours believe cannot be read, so this table alone remembers: a restarted agent tells again, which harms nobody.
    """

    name = "announcements"

    def __init__(self) -> None:
        self._told: Counter[AnnouncementKey] = Counter()

    def read(self) -> Mapping[AnnouncementKey, bool]:
        """Return what has been told at all; the value is True if it was told often enough."""
        return {key: times >= REPEATS for key, times in self._told.items()}

    def put(self, key: AnnouncementKey, value: bool) -> None:
        """Tell the neighbours once more."""
        device, address = key
        try:
            mac = bytes.fromhex(Path(f"/sys/class/net/{device}/address").read_text().strip().replace(":", ""))
            if address.version == 4:
                _gratuitous_arp(device, mac, address)
            else:
                _unsolicited_advertisement(device, mac, address)
        except OSError as error:
            raise TableError(f"{address} cannot be announced on {device}: {error}") from error
        self._told[key] += 1

    def drop(self, key: AnnouncementKey) -> None:
        """Forget that it was told; the next holder tells better."""
        del self._told[key]


def _gratuitous_arp(device: str, mac: bytes, address: IPv4Address) -> None:
    """RFC 5227, section 3: an ARP request for one's own address."""
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address.packed + bytes(6) + address.packed
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((device, _ARP))
        link.send(_BROADCAST + mac + struct.pack("!H", _ARP) + arp)


def _unsolicited_advertisement(device: str, mac: bytes, address: IPv6Address) -> None:
    """RFC 4861, section 7.2.6; the kernel fills in the checksum of raw ICMPv6."""
    message = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + address.packed
    message += struct.pack("!BB", _TARGET_LINK_LAYER, 1) + mac
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as link:
        index = socket.if_nametoindex(device)
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        link.sendto(message, (_ALL_NODES, 0, 0, index))

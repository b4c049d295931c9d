"""The wire format of rtnetlink: messages and attributes to bytes and back, and the few numbers of it that we use.

Written out rather than taken from pyroute2: one CNI ADD is a dozen messages, which pyroute2 0.9 takes 17 ms to send (it opens
an event loop a socket) and this 1 ms, as two writes. Numbers are those of `linux/rtnetlink.h`, `if_link.h`, `if_addr.h`,
`neighbour.h` and `fib_rules.h`; all are stable interface of the kernel.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

FAMILY = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
VERSION = {family: version for version, family in FAMILY.items()}

REQUEST, MULTI, ACK, DUMP_INTR = 0x1, 0x2, 0x4, 0x10
ACK_TLVS, CAPPED = 0x200, 0x100
DUMP, REPLACE, EXCL, CREATE, APPEND = 0x300, 0x100, 0x200, 0x400, 0x800
ERROR, DONE = 2, 3

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, GETADDR = 20, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34

IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_NET_NS_FD = 1, 3, 4, 18, 20, 26, 28
IFLA_EXT_MASK, SKIP_STATS = 29, 0x8
INFO_KIND, INFO_DATA = 1, 2
VETH_PEER = 1
VXLAN_LEARNING, VXLAN_PORT, VXLAN_ZERO_CSUM6_RX, VXLAN_COLLECT_METADATA = 7, 15, 20, 25
INET6_ADDR_GEN_MODE, ADDR_GEN_NONE = 8, 1

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x1, 0x2, 0x8, 0x20, 0x40

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 7, 8, 9, 15
RTAX_MTU, RTNH_ONLINK = 2, 4
RTN_UNICAST, RTN_LOCAL = 1, 2
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
TABLE_MAIN, PROTO_BOOT = 254, 3

NDA_DST, NDA_LLADDR, NDA_PROTOCOL = 1, 2, 12
NUD_PERMANENT, NTF_PROXY = 0x80, 0x8

FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 15, 16, 21
FRA_SUPPRESS_PREFIXLEN = 14
FR_ACT_TO_TBL = 1

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_NESTED = 0x8000


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return one netlink message, header included."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, sequence, 0) + body + bytes(-len(body) % 4)


def messages(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    """Cut what was received into (kind, flags, sequence, body)."""
    found, at = [], 0
    while at + _HEADER.size <= len(raw):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(raw, at)
        found.append((kind, flags, sequence, raw[at + _HEADER.size : at + length]))
        at += (length + 3) & ~3
    return found


def attr(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTR.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute made of attributes."""
    return attr(kind | _NESTED, b"".join(attributes))


def u8(kind: int, value: int) -> bytes:
    """Return an 8 bit attribute."""
    return attr(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    """Return a 32 bit attribute in host order."""
    return attr(kind, struct.pack("=I", value))


def be16(kind: int, value: int) -> bytes:
    """Return a 16 bit attribute in network order."""
    return attr(kind, struct.pack("!H", value))


def text(kind: int, value: str) -> bytes:
    """Return a string attribute."""
    return attr(kind, value.encode() + b"\0")


def mac_bytes(mac: str) -> bytes:
    """Return an Ethernet address as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(raw: bytes) -> str:
    """Return six bytes as an Ethernet address.

    >>> mac_text(mac_bytes("02:74:67:00:00:01"))
    '02:74:67:00:00:01'
    """
    return raw.hex(":")


def attributes(raw: bytes, at: int = 0) -> dict[int, bytes]:
    """Return attributes from offset `at` on, by number; of several with one number the last."""
    found = {}
    while at + _ATTR.size <= len(raw):
        length, kind = _ATTR.unpack_from(raw, at)
        if length < _ATTR.size:
            break
        found[kind & _TYPE_MASK] = raw[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def number(raw: bytes | None) -> int:
    """Return a host-order integer attribute of any width; absent is 0."""
    return int.from_bytes(raw or b"", "little" if struct.pack("=H", 1)[0] else "big")


def string(raw: bytes | None) -> str:
    """Return a string attribute; absent is empty."""
    return (raw or b"").rstrip(b"\0").decode(errors="replace")


def address(raw: bytes) -> Address:
    """Return 4 or 16 bytes as an address."""
    return ip_address(raw)


# Fixed headers. An index of 0 leaves the choice to the attributes (a name, or none at all).


def ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """Return `struct ifinfomsg`."""
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def ifaddr(family: int, prefixlen: int = 0, flags: int = 0, scope: int = 0, index: int = 0) -> bytes:
    """Return `struct ifaddrmsg`."""
    return struct.pack("=BBBBI", family, prefixlen, flags, scope, index)


def rt(
    family: int, prefixlen: int = 0, table: int = 0, protocol: int = 0, scope: int = 0, kind: int = 0, flags: int = 0
) -> bytes:
    """Return `struct rtmsg`; a table above 255 goes into RTA_TABLE."""
    return struct.pack("=BBBBBBBBI", family, prefixlen, 0, 0, table if table < 256 else 0, protocol, scope, kind, flags)


def nd(family: int, index: int = 0, state: int = 0, flags: int = 0) -> bytes:
    """Return `struct ndmsg`."""
    return struct.pack("=BxHiHBB", family, 0, index, state, flags, 0)


IFINFO, IFADDR, RT, ND = 16, 8, 12, 12
"""Sizes of the fixed headers: their attributes begin there. A rule has the size of a route."""

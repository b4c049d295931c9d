"""A backend of the plainest kind: reads tunnelled packets from raw sockets, and gives what is in them to the kernel by TUN.

    python decapsulate.py DEVICE

For kernels without ipip, sit and ip6tnl devices. Prints "ready" once it listens.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_IPIP, _IPV6 = 4, 41


def main(device: str) -> None:
    """Run until killed."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN_NO_PI))
    families = [(socket.AF_INET, _IPIP), (socket.AF_INET, _IPV6), (socket.AF_INET6, _IPIP), (socket.AF_INET6, _IPV6)]
    sockets = [socket.socket(family, socket.SOCK_RAW, proto) for family, proto in families]
    print("ready", flush=True)
    while True:
        for readable in select.select(sockets, [], [])[0]:
            packet = readable.recv(65536)
            # IPv4 raw sockets show the outer header, IPv6 ones do not.
            outer = (packet[0] & 15) * 4 if readable.family == socket.AF_INET else 0
            os.write(tun, packet[outer:])


if __name__ == "__main__":
    main(sys.argv[1])

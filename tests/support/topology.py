"""Machines as network namespaces on one bridge: nodes, pods, and a server outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from tidegate.datapath.tables.netlink import inside, opened

T = TypeVar("T")

POD_MAC = "02:00:00:00:00:aa"


def run_in(namespace: str, action: Callable[[], T]) -> T:
    """Call `action` in a thread that has entered the namespace, and return or raise what it does."""
    with opened(f"/run/netns/{namespace}") as netns:
        return inside(netns, action)


@dataclass
class Topology:
    """A bridge namespace and the machines on it. Node n is 172.30.0.(10+n) and fd30::(10+n)."""

    prefix: str
    names: list[str] = field(default_factory=list)

    def name(self, machine: str) -> str:
        """The namespace of a machine."""
        return f"{self.prefix}-{machine}"

    def sh(self, machine: str, script: str, check: bool = True) -> str:
        """Run a shell script on a machine; a failure raises with its words."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name(machine)}", "sh", "-ec", script],
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{machine}: {script}\n{done.stdout}{done.stderr}")
        return done.stdout

    def popen(self, machine: str, *command: str) -> subprocess.Popen[str]:
        """Start a command on a machine."""
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name(machine)}", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def add(self, machine: str) -> None:
        """Make a machine without links."""
        subprocess.run(["ip", "netns", "add", self.name(machine)], check=True)
        self.names.append(machine)
        self.sh(machine, "ip link set lo up; sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")

    def plug(self, machine: str, v4: str, v6: str) -> None:
        """Give a machine an uplink eth0 on the bridge."""
        port = f"p-{machine}"
        self.sh(
            "switch",
            f"ip link add {port} type veth peer name eth0 netns {self.name(machine)}; ip link set {port} master br0 up",
        )
        self.sh(
            machine,
            f"ip link set eth0 up; ip address add {v4}/24 dev eth0; ip address add {v6}/64 dev eth0 nodad",
        )

    def node(self, number: int) -> str:
        """Make node n with its uplink and a default route to the server's side."""
        machine = f"node{number}"
        self.add(machine)
        self.plug(machine, f"172.30.0.{10 + number}", f"fd30::{10 + number}")
        self.sh(machine, "ip route add default via 172.30.0.1; ip route add default via fd30::1")
        return machine

    def pod_link(self, node: str, pod: str, device: str, v4: str, v6: str, mtu: int = 1450) -> None:
        """Make a pod namespace linked to a node as the CNI plugin links it: outside the cluster, packets are of 1450 bytes."""
        self.add(pod)
        self.sh(
            node,
            f"""
            ip link add {device} address 02:74:67:00:00:01 mtu {mtu} type veth \
                peer name eth0 address {POD_MAC} mtu {mtu} netns {self.name(pod)}
            ip link set {device} addrgenmode none up
            """,
        )
        self.sh(
            pod,
            f"""
            ip link set eth0 up
            ip address add {v4}/32 dev eth0
            ip address add {v6}/128 dev eth0 nodad
            ip route add 169.254.1.1 dev eth0 scope link
            ip route add default via 169.254.1.1 mtu 1450
            ip route add 10.40.0.0/16 via 169.254.1.1
            ip neighbour add 169.254.1.1 dev eth0 lladdr 02:74:67:00:00:01 nud permanent
            ip -6 neighbour add fe80::1 dev eth0 lladdr 02:74:67:00:00:01 nud permanent
            ip -6 route add default via fe80::1 dev eth0 mtu 1450
            ip -6 route add fd40::/48 via fe80::1 dev eth0
            """,
        )


@contextlib.contextmanager
def topology(nodes: int, prefix: str = "tgt") -> Iterator[Topology]:
    """Nodes, and a server at 172.30.0.1 that also owns 198.51.100.10 and 2001:db8:100::10; all is gone afterwards."""
    made = Topology(f"{prefix}{os.getpid()}")
    try:
        made.add("switch")
        made.sh("switch", "ip link add br0 type bridge; ip link set br0 up")
        made.add("server")
        made.plug("server", "172.30.0.1", "fd30::1")
        made.sh("server", "ip address add 198.51.100.10/32 dev lo; ip address add 2001:db8:100::10/128 dev lo nodad")
        for number in range(1, nodes + 1):
            made.node(number)
        yield made
    finally:
        for machine in made.names:
            subprocess.run(["ip", "netns", "delete", made.name(machine)], check=False)

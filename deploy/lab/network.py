"""Make a lab's namespaces, cables and addresses, and take them away."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tidegate.lab.topology import ROUTER, SWITCH, Topology

NAMESPACES = Path("/run/netns")


class NetworkError(Exception):
    """`ip` refused a line; the message says which and why."""


def build(topology: Topology) -> None:
    """Make everything up to addresses and default routes."""
    batch(topology.creation())
    setups = {host.name: topology.host_setup(host) for host in topology.plugged}
    setups[SWITCH] = topology.switch_setup()

    def set_up(host: str) -> None:
        namespace = topology.namespace(host)
        if host != SWITCH:
            write_sysctls(namespace, topology.sysctls(host))
        batch(setups[host], namespace)

    with ThreadPoolExecutor() as pool:
        list(pool.map(set_up, setups))


def batch(lines: Sequence[str], namespace: str | None = None) -> None:
    """Run lines of `ip`, in one process.

    Not `ip -n`: it remounts / for itself, which a chroot refuses.
    """
    where = inside(namespace) if namespace else []
    done = subprocess.run(
        [*where, "ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise NetworkError(f"ip in {namespace or 'this namespace'}: {done.stderr.strip()}")


def inside(namespace: str) -> list[str]:
    """Prefix of a command that shall run in a namespace.

    Not `ip netns exec`: that mounts a fresh /sys, which hides the cgroups and the bpffs from whoever runs there.
    """
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--"]


def write_sysctls(namespace: str, settings: Mapping[str, str]) -> None:
    """Write kernel settings of a namespace."""
    script = "\n".join(f"echo {value} > /proc/sys/{key}" for key, value in settings.items())
    subprocess.run([*inside(namespace), "sh", "-euc", script], check=True, capture_output=True, text=True)


def route_pods(topology: Topology, pod_cidrs: Mapping[str, Sequence[str]]) -> None:
    """Tell the router which node has which pods, as a fabric does where routing is native."""
    lines = []
    for node in topology.nodes:
        for cidr in pod_cidrs[node.name]:
            gateway = node.ips[1 if ":" in cidr else 0]
            lines.append(f"route replace {cidr} via {gateway}")
    batch(lines, topology.namespace(ROUTER))


def remaining(lab: str) -> list[str]:
    """Name the namespaces of a lab that exist, made by whatever run."""
    return sorted(path.name for path in NAMESPACES.glob(f"tgl-{lab}-*")) if NAMESPACES.is_dir() else []


def remove(namespaces: Sequence[str]) -> None:
    """Delete namespaces, and with them their devices."""
    batch([f"netns delete {name}" for name in namespaces])

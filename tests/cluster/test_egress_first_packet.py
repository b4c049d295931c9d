"""A pod's first packet already carries the egress address, or is not sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import probes
import pytest
from cluster import LEGACY1, Cluster, eventually, node_path, selecting

pytestmark = pytest.mark.cluster

ADDRESSES = ("172.30.0.230", "fd30::230")
BATCH = 20


def connecting(port: int) -> list[str]:
    """Return a command that connects over both families, as its very first act."""
    attempts = "".join(f"(exec 3<>/dev/tcp/{target}/{port}) 2>/dev/null & " for target in LEGACY1)
    return ["bash", "-c", f"{attempts} trap exit TERM; while :; do sleep 86400 & wait $!; done"]


@contextmanager
def policy(cluster: Cluster) -> Iterator[None]:
    """A policy for pods labelled first=yes, by node3."""
    with (
        cluster.labelled(node_path("node3"), first="gateway"),
        cluster.policy(
            "first",
            selectors=[{"podSelector": selecting(first="yes")}],
            destinationCIDRs=[f"{LEGACY1[0]}/32", f"{LEGACY1[1]}/128"],
            gateways=[{"nodeSelector": selecting(first="gateway"), "egressIPs": list(ADDRESSES)}],
        ),
    ):
        yield


def test_no_first_packet_has_a_wrong_source(cluster: Cluster) -> None:
    """Twenty pods are made at once and connect when they start: the server sees the egress addresses and nothing else."""
    port = probes.fresh_port()

    def connections(family: int) -> int:
        return len({each.source_port for each in seen() if (":" in each.source) == (family == 6)})

    def seen() -> list[object]:
        return [each for each in cluster.lab.seen("legacy1") if each.protocol == "tcp" and each.destination_port == port]

    names = {f"first-{number}": f"node{number % 3 + 1}" for number in range(BATCH)}
    with policy(cluster), cluster.pods(names, {"first": "yes"}, command=connecting(port)):
        for family in (4, 6):
            # Two of the same source node may share a port only if the gateway mixed them up.
            eventually(lambda family=family: connections(family) >= BATCH)
        assert {each.source for each in seen()} == set(ADDRESSES)

"""Which address a server should see for a pod's request: pure, from the policies' spec and status and the nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from tidegate.crds.egress import EgressPolicy, PodSelection

NOTHING = "no answer"

Address = IPv4Address | IPv6Address


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod with all that policies select by; `node_addresses` are its node's."""

    name: str
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]
    node_labels: Mapping[str, str]
    node_addresses: Sequence[str]


def expected_source(pod: Pod, destination: str, policies: Sequence[EgressPolicy]) -> frozenset[str]:
    """Return the addresses that are right for one request: several where a policy has several gateways."""
    target = ip_address(destination)
    catching = [
        (-policy.spec.priority, -length, policy.metadata.creationTimestamp, policy.metadata.name, policy)
        for policy in policies
        if any(_selects(selection, pod) for selection in policy.spec.selectors)
        and (length := _length(policy, target)) is not None
    ]
    if not catching:
        return _of_family(pod.node_addresses, target)
    winner = min(catching, key=lambda entry: entry[:4])[4]
    if not winner.status.gateways and winner.spec.whenNoGateway == "Allow":
        return _of_family(pod.node_addresses, target)
    given = [address for gateway in winner.status.gateways for address in gateway.addresses]
    return _of_family(given, target) or frozenset({NOTHING})


def _selects(selection: PodSelection, pod: Pod) -> bool:
    pairs = (
        (selection.podSelector, pod.labels),
        (selection.namespaceSelector, pod.namespace_labels),
        (selection.nodeSelector, pod.node_labels),
    )
    return all(selector is None or selector.matches(labels) for selector, labels in pairs)


def _length(policy: EgressPolicy, target: Address) -> int | None:
    """Return the length of the longest prefix that holds the target; None when that one is excluded, or none does."""

    def longest(cidrs: Sequence[str]) -> int:
        return max((net.prefixlen for net in map(ip_network, cidrs) if target in net), default=-1)

    destination, excluded = longest(policy.spec.destinationCIDRs), longest(policy.spec.excludedCIDRs)
    return destination if destination > excluded else None


def _of_family(addresses: Sequence[str], target: Address) -> frozenset[str]:
    return frozenset(address for address in addresses if ip_address(address).version == target.version)

"""`ClusterState`, the wire to all nodes: what is the same everywhere, in shards of under 256 KiB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from tidegate.crds.capture import PacketCaptureSpec
from tidegate.crds.egress import PodSelection
from tidegate.crds.lb import LoadBalancerSpec
from tidegate.crds.meta import Model, ObjectMeta
from tidegate.crds.routing import ClusterNetworkSpec


class Peer(Model):
    """A node as the others reach it: its internal addresses and pod ranges, IPv4 first."""

    node: str
    addresses: Sequence[str]
    podCIDRs: Sequence[str] = ()


class RuleGateway(Model):
    """A gateway in force: `node`, its tunnel `endpoint`, `weight`, and the address of each family it sends with.

    `number` is what the tunnel carries to it: one node may be a policy's gateway twice, with different addresses.
    """

    node: str
    number: int
    endpoint: str
    weight: int = 1
    addresses: Sequence[str] = ()
    interface: str = ""


class Numbered(Model):
    """What an accepted resource is on the wire, at least; kernels know it by its number, which is never reused soon."""

    name: str
    uid: str
    number: int


class EgressRule(Numbered):
    """An accepted EgressPolicy. `number` is its offset from the tunnel's `vniBase`, 1..2^20.

    `entryNumbers` are those of its second and later `gateways` entries; `number` is also that of the first. `created`
    orders policies of equal priority; no gateway at all means `whenNoGateway`.
    """

    selectors: Sequence[PodSelection]
    destinationCIDRs: Sequence[str]
    entryNumbers: Sequence[int] = ()
    created: str = ""
    priority: int = 0
    excludedCIDRs: Sequence[str] = ()
    gateways: Sequence[RuleGateway] = ()
    whenNoGateway: Literal["Drop", "Allow"] = "Drop"


class BalancedService(Numbered):
    """A LoadBalancer in force. `number`, 1..16383, names it in the kernel of every balancer."""

    spec: LoadBalancerSpec


class OrderedCapture(Numbered):
    """An accepted PacketCapture. `number`, 1..65534, names it in the kernel and in its files."""

    spec: PacketCaptureSpec


class ClusterStateSpec(Model):
    """Shard `index` of `count` of one section; a section is complete when all its shards are there.

    `lastNumber` (in shard 0 of a section whose items have numbers) is the number given last, so that a deleted item's is
    not reused soon.
    """

    section: Literal["network", "peers", "egress", "lb", "capture"]
    index: int = 0
    count: int = 1
    network: ClusterNetworkSpec | None = None
    clusterCIDRs: Sequence[str] = ()
    peers: Sequence[Peer] = ()
    egress: Sequence[EgressRule] = ()
    services: Sequence[BalancedService] = ()
    captures: Sequence[OrderedCapture] = ()
    lastNumber: int = 0


def numbered(spec: ClusterStateSpec) -> Iterator[Numbered]:
    """Yield every item of a shard that has a number."""
    yield from spec.egress
    yield from spec.services
    yield from spec.captures


class ClusterState(Model):
    """The resource, named `<section>-<index>`."""

    metadata: ObjectMeta
    spec: ClusterStateSpec

"""`Cluster`: everything that a planner may know, frozen at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from tidegate.crds import cidr
from tidegate.crds.capture import PacketCapture
from tidegate.crds.cluster_state import ClusterState
from tidegate.crds.egress import EgressPolicy
from tidegate.crds.ipam import CloudUse, IPPool
from tidegate.crds.lb import LoadBalancer
from tidegate.crds.meta import Condition, LabelSelector, Model, ObjectMeta
from tidegate.crds.node_state import NodeState
from tidegate.crds.routing import ClusterNetwork, ClusterNetworkSpec
from tidegate.kube.lease import ALIVE_S, NODE_PREFIX, Lease

NETWORK_NAME = "default"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A resource that the API server let through and the model does not understand."""

    kind: str
    metadata: ObjectMeta
    message: str
    conditions: Sequence[Condition] = ()


Resource = EgressPolicy | IPPool | ClusterNetwork | LoadBalancer | PacketCapture
"""What users write."""


class NodeCondition(Model):
    """One condition of a Node."""

    type: str
    status: str


class NodeAddress(Model):
    """One address of a Node."""

    type: str
    address: str


class NodeSpec(Model):
    """The part of a Node's spec that we use."""

    podCIDRs: Sequence[str] = ()
    providerID: str = ""


class NodeStatus(Model):
    """The part of a Node's status that we use."""

    conditions: Sequence[NodeCondition] = ()
    addresses: Sequence[NodeAddress] = ()


class NodeMeta(Model):
    """A Node's metadata, without what every heartbeat changes."""

    name: str
    labels: Mapping[str, str] = {}


class Node(Model):
    """A Kubernetes node, reduced to what decisions depend on."""

    metadata: NodeMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def is_ready(self) -> bool:
        """Whether nothing says that the node is not Ready."""
        return all(each.status == "True" for each in self.status.conditions if each.type == "Ready")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The internal addresses, IPv4 first."""
        found = [each.address for each in self.status.addresses if each.type == "InternalIP"]
        return tuple(sorted(found, key=lambda text: cidr.address(text).version))


class ServiceCIDRSpec(Model):
    """The ranges of a ServiceCIDR."""

    cidrs: Sequence[str] = ()


class ServiceCIDR(Model):
    """A networking.k8s.io/v1 ServiceCIDR: ranges that Services get addresses from."""

    metadata: NodeMeta
    spec: ServiceCIDRSpec = ServiceCIDRSpec()


@dataclass(frozen=True, slots=True)
class CloudFinding:
    """What a pool's steward says: `trouble` with the cloud as a whole, and what became of it; None before it knows anything.

    `allocated` and `used` count addresses, of all families together.
    """

    trouble: str = ""
    use: CloudUse | None = None
    allocated: int = 0
    used: int = 0


@dataclass(frozen=True)
class Cluster:
    """All resources, and who is alive; `clouds` has what is known of each cloud pool, `serves_clouds` says that there are any."""

    policies: Sequence[EgressPolicy] = ()
    pools: Sequence[IPPool] = ()
    networks: Sequence[ClusterNetwork] = ()
    balancers: Sequence[LoadBalancer] = ()
    captures: Sequence[PacketCapture] = ()
    rejected: Sequence[Rejected] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    states: Mapping[str, NodeState] = field(default_factory=dict)
    shards: Mapping[str, ClusterState] = field(default_factory=dict)
    alive: frozenset[str] = frozenset()
    service_cidrs: Sequence[str] = ()
    clouds: Mapping[str, CloudFinding] = field(default_factory=dict)
    serves_clouds: bool = False
    _selected: dict[bytes, list[Node]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def network(self) -> ClusterNetworkSpec:
        """The settings of the pod network: those of `default`, or the defaults.

        While `default` cannot be understood, what was published last stays: the defaults could be another network.
        """
        last = self.shards.get("network-0")
        if any(each.kind == "ClusterNetwork" and each.metadata.name == NETWORK_NAME for each in self.rejected) and last:
            return last.spec.network or ClusterNetworkSpec()
        return next((each.spec for each in self.networks if each.metadata.name == NETWORK_NAME), ClusterNetworkSpec())

    def selected(self, selector: LabelSelector) -> list[Node]:
        """Return the nodes that a selector matches, by name."""
        # Thousands of policies share a few selectors.
        key = msgspec.json.encode(selector, order="deterministic")
        if key not in self._selected:
            found = [node for _, node in sorted(self.nodes.items()) if selector.matches(node.metadata.labels)]
            self._selected[key] = found
        return self._selected[key]

    def is_live(self, name: str) -> bool:
        """Tell whether the node is Ready and its agent alive."""
        return name in self.alive and name in self.nodes and self.nodes[name].is_ready


def by_age(resource: Resource | Rejected) -> tuple[str, str]:
    """Sort key: the oldest first, then by name."""
    return resource.metadata.creationTimestamp, resource.metadata.name


def living(leases: Mapping[str, Lease], now: datetime) -> tuple[frozenset[str], float]:
    """Return the nodes whose agent renewed its lease lately, and the seconds until the next of them may be dead."""
    alive: set[str] = set()
    soonest = ALIVE_S
    for lease in leases.values():
        name = lease.metadata.name.removeprefix(NODE_PREFIX)
        # The operators' own lease has the same prefix, and a pod's name as its holder.
        if lease.spec.renewTime is None or lease.spec.holderIdentity != name:
            continue
        left = ALIVE_S - (now - datetime.fromisoformat(lease.spec.renewTime)).total_seconds()
        if left > 0:
            alive.add(name)
            soonest = min(soonest, left)
    return frozenset(alive), soonest

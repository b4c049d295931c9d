"""`NodeState`, the wire to one node: the operator writes `spec` (the order), its agent `status` (the receipt)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tidegate.crds.meta import Model, ObjectMeta


class HeldAddress(Model):
    """An egress address that this node shall answer for and send with, on `interface` (the uplink when empty)."""

    address: str
    owner: str
    interface: str = ""


class NodeStateSpec(Model):
    """What concerns this node alone.

    `releasing` lists addresses that were taken away and that no receipt has shown as gone yet: nobody else gets them.
    """

    podCIDRs: Sequence[str] = ()
    egressAddresses: Sequence[HeldAddress] = ()
    releasing: Sequence[str] = ()


class InterfaceFact(Model):
    """A device that may serve as uplink or egress interface, its usable addresses, first one first."""

    name: str
    addresses: Sequence[str] = ()
    mtu: int = 0
    isUplink: bool = False


class Failure(Model):
    """A row that could not be put or dropped. `owner` is `Kind/name` of the resource it serves."""

    owner: str
    table: str
    key: str
    message: str


class PolicyReceipt(Model):
    """How many pods of this node a policy selects, once their rows are in the kernel."""

    name: str
    matchedPods: int = 0


class ServiceReceipt(Model):
    """What a balancer says of one LoadBalancer: backends that fail its checks, and what the last change of the table moved.

    `connections` are those begun since the maps were made; `lastChange` is a time as in conditions.
    """

    name: str
    unhealthy: Sequence[str] = ()
    xdp: Literal["", "native", "generic"] = ""
    connections: int = 0
    slotsMoved: int = 0
    lastChange: str = ""


class CaptureReceipt(Model):
    """What a node says of one PacketCapture."""

    name: str
    state: Literal["Running", "Finished", "QuotaReached", "Failed"] = "Running"
    matched: int = 0
    written: int = 0
    lost: int = 0
    files: Sequence[str] = ()
    message: str = ""


class NodeStateStatus(Model):
    """The receipt. `observedShards` maps each ClusterState's name to the generation that is in the kernel."""

    observedGeneration: int = 0
    observedShards: Mapping[str, int] = {}
    agentVersion: str = ""
    kernel: str = ""
    mtu: int = 0
    interfaces: Sequence[InterfaceFact] = ()
    heldAddresses: Sequence[str] = ()
    policies: Sequence[PolicyReceipt] = ()
    services: Sequence[ServiceReceipt] = ()
    captures: Sequence[CaptureReceipt] = ()
    failures: Sequence[Failure] = ()
    podAddresses: int = 0


class NodeState(Model):
    """The resource; it bears its node's name."""

    metadata: ObjectMeta
    spec: NodeStateSpec = NodeStateSpec()
    status: NodeStateStatus = NodeStateStatus()

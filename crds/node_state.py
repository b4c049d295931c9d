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


class CloudInterface(Model):
    """A cloud's network interface of this node. Pods may have its items only while `state` is `InUse`.

    `cidrs` are its subnet's; `gateways` the subnet's routers, where the provider fixes them. `handed` says that the agent was
    once told to hand its items out, from when on the agent's word is needed before any is taken away.
    """

    id: str
    mac: str = ""
    index: int = -1
    subnet: str = ""
    cidrs: Sequence[str] = ()
    gateways: Sequence[str] = ()
    addresses: Sequence[str] = ()
    prefixes: Sequence[str] = ()
    state: Literal["Creating", "Available", "Attaching", "InUse", "Detaching", "Missing"] = "Creating"
    handed: bool = False


class Intent(Model):
    """A call that is going to be made: written before it, removed with its result; `begun` is Unix time in seconds."""

    token: str
    verb: Literal["create", "attach", "assign", "unassign", "detach", "delete"]
    interface: str = ""
    form: Literal["", "address4", "address6", "prefix4", "prefix6"] = ""
    count: int = 0
    items: Sequence[str] = ()
    subnet: str = ""
    groups: Sequence[str] = ()
    index: int = -1
    begun: int = 0


class NodeCloud(Model):
    """The ledger of what the node has in the cloud. It is that of the machine `instance`: an agent on another one has nothing.

    `counter` numbers the tokens of its calls. `releasing` are items that shall be given up, `round` counts the proposals: an
    answer counts for the proposal whose number it bears.
    """

    pool: str
    instance: str = ""
    counter: int = 0
    interfaces: Sequence[CloudInterface] = ()
    intents: Sequence[Intent] = ()
    releasing: Sequence[str] = ()
    round: int = 0


class NodeStateSpec(Model):
    """What concerns this node alone.

    `releasing` lists addresses that were taken away and that no receipt has shown as gone yet: nobody else gets them.
    """

    podCIDRs: Sequence[str] = ()
    egressAddresses: Sequence[HeldAddress] = ()
    releasing: Sequence[str] = ()
    cloud: NodeCloud | None = None


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


class CloudReceipt(Model):
    """What the node says of its cloud addresses, in numbers; `used4` and `used6` count what pods have and what cools down.

    `waiting` counts pods that got no address. `surrendered` are items of proposal `round` that no pod gets any more, `refused`
    those that a pod has or had a moment ago.
    """

    used4: int = 0
    used6: int = 0
    waiting: int = 0
    round: int = 0
    surrendered: Sequence[str] = ()
    refused: Sequence[str] = ()


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
    cloud: CloudReceipt | None = None


class NodeState(Model):
    """The resource; it bears its node's name."""

    metadata: ObjectMeta
    spec: NodeStateSpec = NodeStateSpec()
    status: NodeStateStatus = NodeStateStatus()
